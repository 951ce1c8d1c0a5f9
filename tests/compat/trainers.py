"""Servers with the faces of trainers' clients on, and the pictures that those clients send."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image

from critiq_server.app import App
from tests.support.bundles import write_bundle, write_simulated
from tests.support.servers import make_settings, running

REWARDS: dict[str, Any] = {
    "bright": "brightness",
    "words": {"dimension": "wordiness", "scale": "raw"},
    "rank": {"dimension": "brightness", "scale": "percentile"},
}


@asynccontextmanager
async def trainer_server(root: Path, limits: dict[str, Any] | None = None, **faces: Any) -> AsyncIterator[App]:
    """A server of the bundle ``tiny``: brightness of a picture, and that times the number of its prompt's tokens."""
    write_bundle(root)
    async with running(make_settings(root, limits=limits or {}, compat={"rewards": REWARDS, **faces})) as app:
        yield app


@asynccontextmanager
async def slow_server(root: Path, limits: dict[str, Any], **faces: Any) -> AsyncIterator[App]:
    """A server of the simulated device, 20 ms a batch, with the one dimension ``red``."""
    write_simulated(root, batch_ms=20.0)
    async with running(make_settings(root, default="simulated", limits=limits, compat=faces)) as app:
        yield app


def http_client(**settings: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(trust_env=False, timeout=60, **settings)


def rest(app: App) -> str:
    return f"http://127.0.0.1:{app.rest_port}"


def jpeg(level: int = 51, side: int = 32) -> bytes:
    """As trainers make it: default quality 75, 4:2:0. A flat grey keeps its level."""
    file = io.BytesIO()
    Image.fromarray(np.full((side, side, 3), level, np.uint8)).save(file, format="JPEG")
    return file.getvalue()


def recorded(name: str) -> bytes:
    """A pickle recorded with another version of NumPy, or of torch or PIL objects."""
    found: dict[str, str] = json.loads((Path(__file__).parent / "pickles.json").read_text())
    return base64.b64decode(found[name])


def recorded_names() -> list[str]:
    return list(json.loads((Path(__file__).parent / "pickles.json").read_text()))
