"""A client that behaves as flow_grpo's and ddpo-pytorch's do: chunks of 64 JPEG files, a pickled dict, up to a thousand
retries of status 500 and of whatever has a Retry-After."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import urllib3
from urllib3.util import Retry

from critiq_server.app import App
from tests.compat.trainers import jpeg, slow_server, trainer_server
from tests.support.gates import held
from tests.support.waiting import until


class FlowGrpo:
    """Its retry policy is that of requests' adapter: 500 by force, 413, 429 and 503 by their Retry-After."""

    def __init__(self, url: str) -> None:
        self._url = url
        retries = Retry(total=1000, backoff_factor=1, status_forcelist=[500], allowed_methods=None)
        self._pool = urllib3.PoolManager(retries=retries, timeout=120)
        self.calls = 0

    def scores(self, pictures: list[bytes], prompts: Any = None) -> list[float]:
        """Raises ``KeyError`` where the server answers a dict without outputs, as the real one does."""
        found: list[float] = []
        chunks = np.array_split(np.array(pictures, dtype=object), int(np.ceil(len(pictures) / 64)))
        texts = None if prompts is None else np.array_split(prompts, len(chunks))
        for number, chunk in enumerate(chunks):
            data: dict[str, Any] = {"images": [bytes(entry) for entry in chunk]}
            if texts is not None:
                data["prompts"] = texts[number]
            self.calls += 1
            # No Content-Type: requests sends none for bytes.
            response = self._pool.request("POST", self._url, body=pickle.dumps(data))
            found += pickle.loads(response.data)["outputs"]  # noqa: S301 - what these clients do
        return found

    def answer(self, body: bytes) -> tuple[int, Any]:
        response = self._pool.request("POST", self._url, body=body, retries=False)
        return response.status, pickle.loads(response.data)  # noqa: S301


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    root = tmp_path_factory.mktemp("bundles")
    async with trainer_server(root, pickle={"listeners": ["0=bright", "0=words"]}) as started:
        yield started


pytestmark = pytest.mark.asyncio(loop_scope="module")


def client(app: App, listener: int = 0) -> FlowGrpo:
    return FlowGrpo(f"http://127.0.0.1:{app.compat_ports[listener]}")


@pytest.mark.parametrize(("count", "calls"), [(1, 1), (64, 1), (65, 2), (130, 3)])
async def test_scores_come_back_in_order_as_plain_floats(app: App, count: int, calls: int) -> None:
    levels = [51 + index for index in range(count)]
    one = client(app)
    scores = await asyncio.to_thread(one.scores, [jpeg(level) for level in levels])
    assert one.calls == calls
    assert {type(score) for score in scores} == {float}
    assert scores == pytest.approx([level / 255 for level in levels], abs=2e-3)


async def test_prompts_come_as_numpy_arrays_of_text(app: App) -> None:
    prompts = np.array(["a cat", "a", "a red house"])
    scores = await asyncio.to_thread(client(app, 1).scores, [jpeg(255)] * 3, prompts)
    assert scores == pytest.approx([4.0, 3.0, 5.0], abs=1e-3)  # the words with their two ends


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ({"images": [jpeg(), b"no picture"]}, "images[1]"),
        ({"images": [jpeg()[:200]]}, "images[0]"),
        ({"images": [b"GIF89a" + bytes(40)]}, "GIF"),
        ({"images": [jpeg(side=1)]}, "at least 16"),
        ({"images": ["text"]}, "images[0]: str"),
        ({"images": []}, "nothing to score"),
        ({"images": [jpeg()] * 300}, "300 pictures"),
        ({}, "no list of pictures"),
        ([jpeg()], "a dict is due"),
        ({"images": [jpeg()], "prompts": ["a", "b"]}, "1 pictures with 2 prompts"),
        ({"images": [jpeg()], "prompts": [7]}, "a list of texts"),
        ({"images": [jpeg()], "prompts": ["a" * 10_000]}, "8,192"),
        ({"images": [jpeg()], "queries": [["what is it?"]]}, "questions"),
        ({"images": [jpeg()], "meta_datas": [{}], "only_strict": True}, "objects"),
        ({"images": [jpeg()], "ref_images": [jpeg()]}, "reference"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_bad_input_is_told_and_never_repeated(app: App, message: Any, words: str) -> None:
    status, answer = await asyncio.to_thread(client(app).answer, pickle.dumps(message))
    assert status == 400
    assert words in answer["error"]


async def test_a_bad_picture_ends_the_training_with_a_readable_cause(app: App) -> None:
    with pytest.raises(KeyError, match="outputs"):
        await asyncio.to_thread(client(app).scores, [b"no picture"])


async def test_a_fault_of_the_server_is_not_repeated_for_hours(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(app.service, "score_batch", broken)
    status, answer = await asyncio.to_thread(client(app).answer, pickle.dumps({"images": [jpeg()]}))
    assert status == 400
    assert "fault" in answer["error"]
    assert "a bug" not in answer["error"]


async def test_any_path_of_a_listener_answers_and_nothing_but_post(app: App) -> None:
    url = f"http://127.0.0.1:{app.compat_ports[0]}/mode/anything"
    assert len(await asyncio.to_thread(FlowGrpo(url).scores, [jpeg()])) == 1
    response = await asyncio.to_thread(urllib3.PoolManager().request, "GET", url)
    assert response.status == 405


async def test_overload_is_waited_out(tmp_path: Path) -> None:
    async with slow_server(tmp_path, {"in_flight": 4, "batch_items": 4}, pickle={"listeners": ["0=red"]}) as app:
        with held(app, "device") as gate:
            blocking = asyncio.create_task(asyncio.to_thread(client(app).scores, [jpeg(9)] * 4))
            await until(lambda: app.service.admission.items == 4)
            raw = urllib3.PoolManager(retries=False)
            body = pickle.dumps({"images": [jpeg(10)]})
            refused = await asyncio.to_thread(raw.request, "POST", f"http://127.0.0.1:{app.compat_ports[0]}", body=body)
            assert refused.status == 503
            assert int(refused.headers["Retry-After"]) >= 1
            assert "error" in pickle.loads(refused.data)  # noqa: S301
            waiting = asyncio.create_task(asyncio.to_thread(client(app).scores, [jpeg(10)]))
            await until(lambda: app.metrics.registry.get_sample_value(*REFUSED) == 2.0)
            gate.release()
            assert await waiting == pytest.approx([10 / 255], abs=1e-3)
            assert len(await blocking) == 4


REFUSED = ("critiq_rejected_total", {"reason": "TOO_BUSY"})


async def test_a_deadline_is_an_overload_too(tmp_path: Path) -> None:
    faces = {"pickle": {"listeners": ["0=red"]}, "timeout_seconds": 0.2}
    async with slow_server(tmp_path, {}, **faces) as app:
        with held(app, "device"):
            status, answer = await asyncio.to_thread(client(app).answer, pickle.dumps({"images": [jpeg()]}))
    assert status == 503
    assert "0.2 s" in answer["error"]
