"""Servers of a group of processes in one event loop, each with ports of its own, so that a test says who gets what."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from critiq_server.app import App
from critiq_server.processes.group import Member
from tests.support.servers import make_settings


@asynccontextmanager
async def grouped(*roots: Path, count: int = 2, **sections: dict[str, Any]) -> AsyncIterator[list[App]]:
    """They talk to one another as ``critiq serve --workers`` has it, over sockets in a directory."""
    async with AsyncExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # a short path: sockets' names are limited
        models = {"state_file": directory / "aliases.json", **sections.pop("models", {})}
        apps = []
        for number in range(count):
            rest = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            sockets = {"rest": rest.fileno()}
            member = Member(number, count, directory, f"{number}-{number + 1}", 0, sockets, lifeline=-1)
            app = App(make_settings(*roots, models=models, **sections), member=member)
            await app.start()
            stack.push_async_callback(app.stop, 2.0)
            apps.append(app)
        yield apps
