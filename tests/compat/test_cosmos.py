"""A client that behaves as Cosmos-RL's: a line of JSON and a .npy file put in, and polled for until status 200."""

from __future__ import annotations

import asyncio
import io
import json
import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from critiq.errors import DeadlineExceeded
from critiq_server.app import App
from tests.compat.trainers import rest, slow_server, trainer_server
from tests.support.gates import held
from tests.support.waiting import until

TOKEN = "secret"  # noqa: S105


def pictures(*levels: int) -> Any:
    return np.stack([np.full((32, 32, 3), level, np.uint8) for level in levels])


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


class Cosmos:
    def __init__(self, app: App, token: str = TOKEN) -> None:
        self._url = rest(app) + "/compat/cosmos/api/reward"
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.http = httpx.AsyncClient(trust_env=False, timeout=60, headers=headers)

    async def ping(self) -> httpx.Response:
        return await self.http.post(f"{self._url}/ping", data={"info_data": json.dumps({"media_type": "image"})})

    async def enqueue(self, array: Any, rewards: Any, prompts: Any, **more: Any) -> httpx.Response:
        data = {"media_type": "image", "prompts": prompts, "reward_fn": rewards, **more}
        body = json.dumps(data).encode() + b"\n" + (array if isinstance(array, bytes) else npy(array))
        return await self.http.post(
            f"{self._url}/enqueue", content=body, headers={"Content-Type": "application/octet-stream"}
        )

    async def pull_once(self, uuid: str, kind: str) -> httpx.Response:
        return await self.http.post(f"{self._url}/pull", data={"uuid": uuid, "type": kind})

    async def pull(self, uuid: str, kind: str) -> dict[str, Any]:
        async with asyncio.timeout(120):
            while (response := await self.pull_once(uuid, kind)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        answer: dict[str, Any] = response.json()
        return answer


def score_of(answer: dict[str, Any], key: str) -> list[float]:
    """As the trainer reads it: the key itself, or the sum of the keys in "a+b"."""
    scores = answer["scores"]
    if key in scores:
        return list(scores[key])
    return [sum(values) for values in zip(*(scores[part] for part in key.split("+")), strict=True)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    faces = {"cosmos": {"enabled": True, "token": TOKEN}}
    async with trainer_server(tmp_path_factory.mktemp("bundles"), **faces) as started:
        yield started


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_put_in_and_fetched(app: App) -> None:
    client = Cosmos(app)
    assert (await client.ping()).json() == {"message": "Ping request received"}
    put = await client.enqueue(pictures(51, 255), {"bright": 1.0, "words": 0.5}, ["a cat", "dog"])
    assert put.status_code == 200
    for kind in ("bright", "words"):
        answer = await client.pull(put.json()["uuid"], kind)
        assert answer["type"] == kind
        assert score_of(answer, "bright") == pytest.approx([0.2, 1.0])
        assert score_of(answer, "bright+words") == pytest.approx([1.0, 4.0])
        assert answer["input_info"] == {"shape": [2, 32, 32, 3], "dtype": "uint8", "min": 51, "max": 255}
        assert float(answer["duration"]) >= 0


async def test_the_token_is_asked_for(app: App) -> None:
    for header in ("", "secret", "Bearer wrong", "Bearer sécret"):
        client = Cosmos(app, "")
        headers = {"Authorization": header.encode()} if header else {}
        response = await client.http.post(f"{client._url}/ping", headers=headers)
        assert response.status_code == 401
        assert "bearer" in response.json()["message"]


def _with_shape(text: bytes) -> bytes:
    head = b"{'descr': '|u1', 'fortran_order': False, 'shape': " + text + b"}\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head + bytes(12)


@pytest.mark.parametrize(
    ("array", "rewards", "prompts", "more", "words"),
    [
        (pictures(1), {"beauty": 1}, ["a"], {}, "no reward 'beauty'"),
        (pictures(1), {}, ["a"], {}, "reward_fn"),
        (pictures(1), {"bright": 1}, ["a", "b"], {}, "1 pictures with 2 prompts"),
        (pictures(1), {"bright": 1}, [1], {}, "a list of texts"),
        (pictures(1), {"bright": 1}, ["a"], {"media_type": "latent"}, "media_type"),
        (pictures(1), {"words": 1}, [""], {}, "needs the prompt"),
        (pictures(1).astype(np.float32), {"bright": 1}, ["a"], {}, "float32"),
        (np.zeros((1, 16, 4, 4), np.uint8), {"bright": 1}, ["a"], {}, "[1, 16, 4, 4]"),
        (np.zeros((1, 4, 4, 3), np.uint8), {"bright": 1}, ["a"], {}, "at least 16"),
        (np.zeros((0, 32, 32, 3), np.uint8), {"bright": 1}, [], {}, "0 bytes"),
        (np.zeros((300, 16, 16, 3), np.uint8), {"bright": 1}, ["a"] * 300, {}, "300 pictures"),
        (npy(pictures(1))[:-5], {"bright": 1}, ["a"], {}, "bytes for an array"),
        (_with_shape(b"(999999, 999999, 999999, 3)"), {"bright": 1}, ["a"], {}, "bytes for an array"),
        (_with_shape(b"__import__('os').abort()"), {"bright": 1}, ["a"], {}, "no .npy"),
        (_with_shape(b"(((((("), {"bright": 1}, ["a"], {}, "no .npy"),
        (b"no array", {"bright": 1}, ["a"], {}, "no .npy"),
        (b"", {"bright": 1}, ["a"], {}, "no .npy"),
        (npy(np.asfortranarray(np.zeros((2, 32, 32, 3), np.uint8))), {"bright": 1}, ["a"] * 2, {}, "C order"),
    ],
)
async def test_what_is_wrong_is_told_while_the_client_listens(
    app: App, array: Any, rewards: Any, prompts: Any, more: dict[str, Any], words: str
) -> None:
    response = await Cosmos(app).enqueue(array, rewards, prompts, **more)
    assert response.status_code == (404 if "beauty" in words else 400)
    assert words in response.json()["message"]


async def test_a_body_without_its_line_of_json(app: App) -> None:
    client = Cosmos(app)
    for body in (b"", b"{}", b"\n", b"[]\n", npy(pictures(1))):
        response = await client.http.post(f"{client._url}/enqueue", content=body)
        assert response.status_code == 400, body


async def test_a_job_that_is_not_there(app: App) -> None:
    response = await Cosmos(app).pull_once("nothing", "bright")
    assert response.status_code == 404
    assert "no job 'nothing'" in response.json()["message"]


async def test_not_ready_is_a_400_until_it_is(tmp_path: Path) -> None:
    async with slow_server(tmp_path, {}, cosmos={"enabled": True}) as app:
        client = Cosmos(app)
        with held(app, "device") as gate:
            uuid = (await client.enqueue(pictures(51), {"red": 1}, ["a"])).json()["uuid"]
            for _ in range(2):
                response = await client.pull_once(uuid, "red")
                assert response.status_code == 400
                assert "not finished" in response.json()["message"]
            gate.release()
            assert score_of(await client.pull(uuid, "red"), "red") == pytest.approx([0.2], abs=1e-3)


async def test_a_job_that_fails_ends(tmp_path: Path) -> None:
    faces = {"cosmos": {"enabled": True}, "timeout_seconds": 0.3}
    async with slow_server(tmp_path, {}, **faces) as app:
        client = Cosmos(app)
        with held(app, "device"):
            uuid = (await client.enqueue(pictures(51), {"red": 1}, ["a"])).json()["uuid"]
            answer = await client.pull(uuid, "red")
        assert answer["scores"] == {}
        assert "0.3 s" in answer["error"]
        assert DeadlineExceeded.code not in answer["error"]


async def test_overload_and_too_many_jobs_are_503(tmp_path: Path) -> None:
    limits = {"in_flight": 2, "batch_items": 2}
    async with slow_server(tmp_path, limits, cosmos={"enabled": True, "jobs": 2, "keep_seconds": 600}) as app:
        client = Cosmos(app)
        with held(app, "device") as gate:
            first = (await client.enqueue(pictures(1), {"red": 1}, ["a"])).json()["uuid"]
            busy = await client.enqueue(pictures(2, 3), {"red": 1}, ["a", "b"])
            assert busy.status_code == 503
            assert "2 (" in busy.json()["message"]
            assert int(busy.headers["retry-after"]) >= 1
            await client.enqueue(pictures(4), {"red": 1}, ["a"])
            full = await client.enqueue(pictures(5), {"red": 1}, ["a"])
            assert full.status_code == 503
            assert "2 jobs" in full.json()["message"]
            gate.release()
            await client.pull(first, "red")
        await until(lambda: app.service.admission.items == 0)
        # A finished job gives way to a new one: the oldest first.
        assert (await client.enqueue(pictures(6), {"red": 1}, ["a"])).status_code == 200
        assert (await client.pull_once(first, "red")).status_code == 404
