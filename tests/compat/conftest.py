"""Servers that several of these modules ask: one for the Open Inference Protocol, one to be sent anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from critiq_server.app import App
from tests.support.bundles import write_bundle
from tests.support.faces import Ports, ports
from tests.support.servers import ServerProcess, make_settings, running, server_process

LIMIT = 2**20
ITEMS = 8


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    write_bundle(root, name="spare")
    async with running(make_settings(root, limits={"batch_items": ITEMS, "request_bytes": LIMIT})) as app:
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connected(app: App) -> AsyncIterator[Ports]:
    async with ports(app) as connected:
        yield connected


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server process that must live on, and know of no fault of its own, whatever it is sent."""
    root: Path = tmp_path_factory.mktemp("fuzz")
    write_bundle(root)
    arguments = ["--models", str(root), "--set", "models.default=tiny", "--set", "models.load=[tiny]"]
    with server_process(arguments, root / "log") as process:
        yield process
        assert process.process.poll() is None, "the server is gone"
        assert '"event": "fault"' not in (root / "log").read_text()
