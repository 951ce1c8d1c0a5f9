"""A server for the tests of the Open Inference Protocol that need none of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from critiq_server.app import App
from tests.support.bundles import write_bundle
from tests.support.faces import Ports, ports
from tests.support.servers import make_settings, running

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
