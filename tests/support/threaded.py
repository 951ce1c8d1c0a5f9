"""A server in a thread, for clients that block."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

from critiq_server.app import App
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running


class Running:
    """A server in a thread of its own, so that blocking clients can be tested; two models, ``tiny`` and ``other``;
    ``sections`` are further settings."""

    def __init__(self, root: Path, **sections: Any) -> None:
        write_bundle(root)
        write_bundle(root, name="other", bias=1.0)
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        started = threading.Event()
        models = {"load": ("tiny", "other"), "directories": (root,), "default": "tiny"}

        async def serve() -> None:
            async with running(make_settings(root, models=models, **sections)) as app:
                self.app: App = app
                started.set()
                await self._stop.wait()

        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(serve(),))
        self._thread.start()
        assert started.wait(120), "the server did not start"

    def url(self, transport: str = "grpc") -> str:
        port = self.app.grpc_port if transport == "grpc" else self.app.rest_port
        return f"localhost:{port}" if transport == "grpc" else f"http://localhost:{port}"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(120)
