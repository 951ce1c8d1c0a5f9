"""A server with a key for each scope."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI

from critiq_server.app import App
from critiq_server.security.guard import Guard
from critiq_server.security.keys import SCOPES, append, new_key
from tests.server.jobs.test_jobs import POLICY
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running


@dataclass
class Server:
    app: App
    keys: dict[str, str]
    file: Path
    http: httpx.AsyncClient
    grpc: grpc.aio.Channel

    @property
    def guard(self) -> Guard:
        assert self.app._guard is not None
        return self.app._guard

    def new_key(self, *scopes: str, **limits: Any) -> str:
        """Another key, which the server takes up by itself."""
        text, key = new_key("another", scopes, **limits)
        append(self.file, key)
        return text

    def application(self) -> FastAPI:
        guarded: Any = self.app._rest.config.app
        application = guarded._app
        assert isinstance(application, FastAPI)
        return application


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    root = tmp_path_factory.mktemp("access")
    write_bundle(root / "bundles")
    (root / "bright.yaml").write_text(POLICY)
    keys = {}
    for scope in SCOPES:
        keys[scope], entry = new_key(f"{scope}-only", [scope])
        append(root / "keys.yaml", entry)
    face = {"enabled": True}
    sections: dict[str, Any] = {
        "security": {"keys_file": root / "keys.yaml", "reload_seconds": 0.05},
        "jobs": {"path": root / "jobs.db"},
        "models": {"allow_changes": True},
        "telemetry": {"profiling": True},
        "moderation": {"policies": [root / "bright.yaml"], "openai": face},
        "compat": {
            "pickle": {"enabled": True, "listeners": ["0=brightness"]},
            "flow_factory": face,
            "unirl": face,
            "cosmos": face,
        },
    }
    async with (
        running(make_settings(root / "bundles", **sections)) as app,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}") as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel,
    ):
        yield Server(app, keys, root / "keys.yaml", http, channel)


async def ask(server: Server, path: str, method: str, key: str = "") -> httpx.Response:
    """Asks without a body; what a path leaves open becomes ``nothing``."""
    for name in ("{name}", "{version}", "{reward}", "{rest}"):
        path = path.replace(name, "nothing")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    params = {"seconds": "0.1"} if path == "/v1/admin/profile" else {}
    return await server.http.request(method, path, headers=headers, params=params)
