from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from critiq_server.app import App
from tests.support.bundles import write_bundle
from tests.support.faces import Ports, ports
from tests.support.servers import make_settings, running

BATCH_ITEMS = 8
REQUEST_BYTES = 16 * 2**20
IMAGE_BYTES = 2**20


@dataclass
class Server:
    app: App
    ports: Ports


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    """A server of the bundle ``tiny`` for all tests of a module; ``spare`` is known to it, but not loaded."""
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    write_bundle(root, name="spare")
    limits = {
        "batch_items": BATCH_ITEMS,
        "in_flight": 64,
        "request_bytes": REQUEST_BYTES,
        "image": {"max_bytes": IMAGE_BYTES},
    }
    async with running(make_settings(root, limits=limits)) as app, ports(app) as connected:
        yield Server(app, connected)
