"""A client that behaves as UniRL's: JPEG files of quality 95 in conversations, a roster it checks at the start, and
sub-metrics it reduces by itself; anything that is no finite number is a failed sample."""

from __future__ import annotations

import asyncio
import base64
import io
import math
from collections.abc import AsyncIterator, Sequence
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


def encoded(level: int) -> str:
    file = io.BytesIO()
    Image.fromarray(np.full((32, 32, 3), level, np.uint8)).save(file, format="JPEG", quality=95)
    return base64.b64encode(file.getvalue()).decode()


def wire_request(rewards: Sequence[str], image: str | None, text: str = "a cat", **more: Any) -> dict[str, Any]:
    history = [{"text": text, "image_b64": image}] if image is not None else [{"text": text, "video_b64": "AAAA"}]
    return {"history": history, "required_rewards": list(rewards), "metadata": None, **more}


class UniRl:
    def __init__(self, url: str, rewards: Sequence[str], reduce: str = "first") -> None:
        self._url = url
        self._rewards = list(rewards)
        self._reduce = reduce
        self._http = httpx.Client(trust_env=False, timeout=300)

    def is_available(self) -> bool:
        response = self._http.get(f"{self._url}/health", timeout=60)
        if response.status_code != 200:
            return False
        body = response.json()
        assert body["status"] == "ok"
        assert all(isinstance(entry, list) for entry in body["rewards"].values())
        missing = [name for name in self._rewards if name not in body["rewards"]]
        if missing:
            raise ValueError(f"required_rewards={missing} not served")
        return True

    def score(self, requests: list[dict[str, Any]]) -> list[tuple[dict[str, float], dict[str, str]]]:
        response = self._http.post(f"{self._url}/score", json={"protocol_version": "1", "requests": requests})
        response.raise_for_status()
        raw = response.json()
        assert raw.get("protocol_version") in (None, "1")
        assert len(raw["results"]) == len(raw["errors"]) == len(requests)
        for sent, echoed in zip(requests, raw["identities"], strict=True):
            for key in ("request_id", "sample_id", "group_id", "idempotency_key"):
                assert echoed[key] == sent.get(key)
        return [self._sample(*pair) for pair in zip(raw["results"], raw["errors"], strict=True)]

    def _sample(self, result: dict[str, Any], errors: dict[str, str]) -> tuple[dict[str, float], dict[str, str]]:
        found = {}
        for name in self._rewards:
            if name not in result:
                assert name in errors, "missing from server response without error"
                continue
            values = list(result[name].values())
            assert values
            assert all(type(value) is float and math.isfinite(value) for value in values)
            found[name] = {"first": values[0], "mean": sum(values) / len(values), "max": max(values)}[self._reduce]
        return found, errors


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    faces = {"unirl": {"enabled": True, "listeners": ["0"]}}
    async with trainer_server(tmp_path_factory.mktemp("bundles"), **faces) as started:
        yield started


pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_the_roster_has_every_reward(app: App) -> None:
    url = rest(app) + "/compat/unirl"
    assert await asyncio.to_thread(UniRl(url, ["bright", "words", "rank", "brightness"]).is_available)
    with pytest.raises(ValueError, match="beauty"):
        await asyncio.to_thread(UniRl(url, ["beauty"]).is_available)


@pytest.mark.parametrize("reduce", ["first", "mean", "max"])
async def test_two_rewards_however_the_client_reduces_them(app: App, reduce: str) -> None:
    client = UniRl(f"http://127.0.0.1:{app.compat_ports[0]}", ["bright", "words"], reduce)
    asked = [
        wire_request(["bright", "words"], encoded(51), request_id="1", sample_id="s", group_id=None, source_rank=0),
        wire_request(["bright", "words"], encoded(255), "a red house", idempotency_key="k"),
    ]
    first, second = await asyncio.to_thread(client.score, asked)
    assert first[0] == pytest.approx({"bright": 0.2, "words": 0.8}, abs=1e-3)
    assert second[0] == pytest.approx({"bright": 1.0, "words": 5.0}, abs=1e-3)
    assert first[1] == second[1] == {}


async def test_each_request_has_rewards_of_its_own(app: App) -> None:
    client = UniRl(rest(app) + "/compat/unirl", [])
    answer = await asyncio.to_thread(
        client._http.post,
        rest(app) + "/compat/unirl/score",
        json={"requests": [wire_request(["bright"], encoded(51)), wire_request(["words", "rank"], encoded(51))]},
    )
    assert [sorted(entry) for entry in answer.json()["results"]] == [["bright"], ["rank", "words"]]


async def test_a_failed_item_is_an_entry_in_errors_and_its_neighbours_are_not(app: App) -> None:
    client = UniRl(rest(app) + "/compat/unirl", ["bright"])
    asked = [
        wire_request(["bright"], encoded(51)),
        wire_request(["bright"], base64.b64encode(b"no picture").decode()),
        wire_request(["bright"], "no base64!"),
        wire_request(["bright"], None),
        wire_request(["bright"], encoded(255)),
    ]
    samples = await asyncio.to_thread(client.score, asked)
    assert [len(found) for found, _ in samples] == [1, 0, 0, 0, 1]
    assert [len(errors) for _, errors in samples] == [0, 1, 1, 1, 0]
    assert "requests[3].history[0]" in samples[3][1]["bright"]


async def test_an_edit_is_judged_by_its_last_turn(app: App) -> None:
    asked = wire_request(["bright"], encoded(255))
    asked["history"] = [{"text": "before", "image_b64": encoded(0)}, *asked["history"]]
    ((found, _),) = await asyncio.to_thread(UniRl(rest(app) + "/compat/unirl", ["bright"]).score, [asked])
    assert found == pytest.approx({"bright": 1.0}, abs=1e-3)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"text": "a", "image_b64": ""}, 422, "requests"),
        ({"requests": [{"history": [], "required_rewards": ["bright"]}]}, 422, "history"),
        ({"requests": [{"history": [{"text": 7}], "required_rewards": ["bright"]}]}, 422, "text"),
        ({"requests": [wire_request([], encoded(51))]}, 422, "required_rewards"),
        ({"requests": [wire_request(["beauty"], encoded(51))]}, 400, "no reward 'beauty'"),
        ({"requests": []}, 400, "nothing to score"),
        ({"requests": [wire_request(["bright"], encoded(51))] * 300}, 400, "300 pictures"),
        ([], 400, "JSON object"),
    ],
)
async def test_bodies_that_cannot_be_used(app: App, body: Any, status: int, words: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as client:
        response = await client.post(rest(app) + "/compat/unirl/score", json=body)
    assert response.status_code == status
    assert words in response.json()["detail"]


async def test_overload_is_repeated_and_many_single_requests_ride_together(tmp_path: Path) -> None:
    limits = {"in_flight": 64, "batch_items": 64}
    async with slow_server(tmp_path, limits, unirl={"enabled": True}) as app:
        url = rest(app) + "/compat/unirl"
        async with httpx.AsyncClient(trust_env=False, timeout=60) as client:

            async def ask(level: int) -> httpx.Response:
                return await client.post(f"{url}/score", json={"requests": [wire_request(["red"], encoded(level))]})

            with held(app, "device") as gate:
                tasks = [asyncio.create_task(ask(64 + level)) for level in range(64)]
                await until(lambda: app.service.admission.items == 64)
                refused = await ask(9)
                assert refused.status_code == 503
                assert "retry-after" in refused.headers
                gate.release()
                answers = await asyncio.gather(*tasks)
        values = [answer.json()["results"][0]["red"]["calibrated"] for answer in answers]
        assert values == pytest.approx([(64 + level) / 255 for level in range(64)], abs=5e-3)
        labels = {"model": "simulated", "stage": "device"}
        assert app.metrics.registry.get_sample_value("critiq_batch_size_count", labels) == 3  # 1, then 32 and 31
