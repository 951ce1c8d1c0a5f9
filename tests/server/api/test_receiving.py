"""Bodies of many requests at once: they are bounded together, and leave nothing on the disk."""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest
from PIL import Image

from critiq.errors import TooBusy
from critiq_server.api.receiving import BodyLimit
from critiq_server.settings import LimitSettings
from tests.fixtures.images import encoded
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running


async def test_bodies_that_come_at_once_are_bounded_together_and_one_alone_is_not() -> None:
    answer = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await answer.wait()

    limited = BodyLimit(app, LimitSettings(request_bytes=1000, received_bytes=900))

    async def ask(size: int) -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": bytes(size), "more_body": False}

        await limited({"type": "http", "headers": []}, receive, lambda message: asyncio.sleep(0))

    held = asyncio.create_task(ask(1000))
    await asyncio.sleep(0)
    with pytest.raises(TooBusy, match="holds 1000 bytes") as busy:
        await ask(1)
    assert busy.value.retry_after
    answer.set()
    await held
    await ask(500)


async def test_forms_are_read_where_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path)
    picture = encoded(Image.frombytes("RGB", (800, 500), random.Random(1).randbytes(1_200_000)), "PNG")
    assert len(picture) > 2**20

    def refuse(*_: object, **__: object) -> NoReturn:
        raise FileNotFoundError("no usable temporary directory")

    async with running(make_settings(tmp_path)) as app:
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}") as http:
            answer = await http.post("/v1/score", files={"image": picture})
    assert answer.status_code == 200, answer.text
