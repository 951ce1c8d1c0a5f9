"""A client that behaves as Flow-Factory's: PNG files in base64 JSON, three tries without a pause of any HTTP error."""

from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from critiq_server.app import App
from tests.compat.trainers import rest, slow_server, trainer_server
from tests.support.gates import held
from tests.support.waiting import until


def picture(level: int = 51) -> Image.Image:
    return Image.fromarray(np.full((32, 32, 3), level, np.uint8))


def payload(prompt: list[str], image: list[Image.Image] | None, **others: Any) -> dict[str, Any]:
    def encoded(entry: Image.Image) -> str:
        file = io.BytesIO()
        entry.save(file, format="PNG")
        return base64.b64encode(file.getvalue()).decode()

    conditions = others.get("condition_images")
    return {
        "prompt": prompt,
        "image": [encoded(entry) for entry in image] if image else None,
        "video": others.get("video"),
        "condition_images": [[encoded(entry) for entry in row] for row in conditions] if conditions else None,
        "condition_videos": None,
        "kwargs": others.get("kwargs"),
    }


class FlowFactory:
    def __init__(self, url: str) -> None:
        self._url = url
        self._http = httpx.Client(trust_env=False, timeout=60)
        self.tries = 0

    def health_check(self) -> bool:
        return self._http.get(f"{self._url}/health").is_success

    def compute(self, body: dict[str, Any]) -> list[float]:
        for attempt in range(3):
            self.tries += 1
            try:
                response = self._http.post(f"{self._url}/compute", json=body)
                response.raise_for_status()
            except httpx.HTTPError as error:
                if attempt == 2:
                    raise RuntimeError(f"Failed to connect to {self._url}: {error}") from error
                continue
            answer = response.json()
            if answer.get("error"):
                raise RuntimeError(f"Server error: {answer['error']}")
            rewards: list[float] = answer["rewards"]
            return rewards
        raise AssertionError


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    faces = {"flow_factory": {"enabled": True, "listeners": ["0=words"]}}
    async with trainer_server(tmp_path_factory.mktemp("bundles"), **faces) as started:
        yield started


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_under_the_rest_port(app: App) -> None:
    client = FlowFactory(rest(app) + "/compat/flow_factory/bright")
    assert await asyncio.to_thread(client.health_check)
    body = payload(
        ["a", "b"], [picture(51), picture(255)], condition_images=[[picture()], [picture()]], kwargs={"x": 1}
    )
    assert await asyncio.to_thread(client.compute, body) == pytest.approx([0.2, 1.0])
    assert not await asyncio.to_thread(FlowFactory(rest(app) + "/compat/flow_factory/beauty").health_check)


async def test_on_a_port_of_its_own(app: App) -> None:
    client = FlowFactory(f"http://127.0.0.1:{app.compat_ports[0]}")
    assert await asyncio.to_thread(client.health_check)
    rewards = await asyncio.to_thread(client.compute, payload(["a cat", "dog"], [picture(255)] * 2))
    assert rewards == pytest.approx([4.0, 3.0])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (payload(["a"], None), "no pictures"),
        (payload(["a"], None, video=[["frame"]]), "videos are not scored"),
        ({**payload(["a"], [picture()]), "image": ["no base64!"]}, "image[0]"),
        ({**payload(["a"], [picture()]), "image": [base64.b64encode(b"text").decode()]}, "images[0]"),
        ({**payload(["a"], [picture()]), "image": "text"}, "a list of files"),
        ({**payload(["a"], [picture()]), "image": [None]}, "image[0]"),
        (payload(["a", "b"], [picture()]), "1 pictures with 2 prompts"),
        ({**payload(["a"], [picture()]), "prompt": [7]}, "a list of texts"),
        ({}, "no pictures"),
    ],
)
async def test_what_lasts_is_raised_at_once_with_its_reason(app: App, body: dict[str, Any], words: str) -> None:
    client = FlowFactory(rest(app) + "/compat/flow_factory/words")
    with pytest.raises(RuntimeError, match="Server error") as raised:
        await asyncio.to_thread(client.compute, body)
    assert words in str(raised.value)
    assert client.tries == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff", b'{"image": NaN}'])
async def test_what_is_no_json_is_told(app: App, content: bytes) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.post(rest(app) + "/compat/flow_factory/words/compute", content=content)
    assert response.status_code == 200
    assert "JSON" in response.json()["error"]


async def test_overload_is_an_http_error(tmp_path: Path) -> None:
    faces = {"flow_factory": {"listeners": ["0=red"]}}
    async with slow_server(tmp_path, {"in_flight": 1, "batch_items": 1}, **faces) as app:
        url = f"http://127.0.0.1:{app.compat_ports[0]}"
        with held(app, "device") as gate:
            blocking = asyncio.create_task(asyncio.to_thread(FlowFactory(url).compute, payload(["a"], [picture(9)])))
            await until(lambda: app.service.admission.items == 1)
            client = FlowFactory(url)
            with pytest.raises(RuntimeError, match="503"):
                await asyncio.to_thread(client.compute, payload(["a"], [picture(10)]))
            assert client.tries == 3
            gate.release()
            assert await blocking == pytest.approx([9 / 255], abs=1e-3)
