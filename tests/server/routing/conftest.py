from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from critiq_server.app import App
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[App]:
    """A server that has three versions of ``tiny``, the newer the brighter, and callers that may change aliases."""
    for number in (1, 2, 3):
        write_bundle(tmp_path / "bundles", version=str(number), bias=0.1 * number)
    models = {"allow_changes": True, "aliases": {"default": "tiny:1"}, "load": ("tiny:1", "tiny:2")}
    async with running(make_settings(tmp_path / "bundles", models=models, engine={"store_mb": 0})) as app:
        yield app
