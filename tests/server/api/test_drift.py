"""Drift through real servers: labels on every face, the answer's form, metrics, baselines, a restart."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from critiq import AsyncClient
from critiq_server.app import App
from critiq_server.scoring.drift_report import DriftJson
from tests.support.bundles import write_bundle
from tests.support.faces import PROTOBUF
from tests.support.servers import make_settings, running
from tests.support.waiting import until

QUICK = {"check_seconds": 0.1, "baseline_requests": 300, "least_count": 50, "labels": ("web", "batch")}
RNG = np.random.default_rng(0)


@dataclass
class Server:
    app: App
    http: httpx.AsyncClient

    async def score(self, count: int, mean: float = 100.0, label: str | None = "web", scheme: str = "") -> None:
        headers = {} if label is None else {"critiq-label": label}
        port = self.app.rest_port if scheme else self.app.grpc_port
        async with AsyncClient(f"{scheme}127.0.0.1:{port}", headers=headers) as client:
            levels = np.clip(RNG.normal(mean, 30, count), 0, 255)
            pictures = [(np.full((16, 16, 3), int(level), np.uint8), "a cat") for level in levels]
            assert all(result.error is None for result in await client.score_batch(pictures))

    async def drift(self, **filters: Any) -> DriftJson:
        response = await self.http.get("/v1/drift", params=filters)
        assert response.status_code == 200, response.text
        return DriftJson.model_validate_json(response.content)

    async def counts(self, name: str = "brightness") -> dict[str, int]:
        return {entry.label: entry.count for entry in (await self.drift()).series if entry.name == name}


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    write_bundle(tmp_path)
    settings = make_settings(tmp_path, drift={**QUICK, "allow_changes": True})
    async with running(settings) as app, connected(app) as http:
        yield Server(app, http)


def connected(app: App) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}", timeout=120, trust_env=False)


async def test_a_callers_label_counts_on_every_face(server: Server) -> None:
    await server.score(2, label="web")
    await server.score(3, label="batch", scheme="http://")
    await server.score(4, label="web\t2", scheme="http://")
    await server.score(5, label=None)
    async with AsyncClient(f"127.0.0.1:{server.app.grpc_port}", headers={"critiq-label": "batch"}) as client:
        pictures = [np.full((16, 16, 3), level, np.uint8) for level in range(6)]
        assert len([result async for result in client.score_stream(pictures)]) == 6
    file = BytesIO()
    Image.new("RGB", (16, 16)).save(file, "PNG")
    headers = {"critiq-label": "web", "content-type": "image/png"}
    response = await server.http.post("/v1/score", content=file.getvalue(), headers=headers)
    assert response.status_code == 200, response.text
    assert await server.counts() == {"web": 3, "batch": 9, "other": 4, "": 5}


async def test_a_label_changes_neither_keys_nor_caching(server: Server) -> None:
    picture = np.full((16, 16, 3), 77, np.uint8)
    results = []
    for label in ("web", "batch", "stranger"):
        async with AsyncClient(f"127.0.0.1:{server.app.grpc_port}", headers={"critiq-label": label}) as client:
            results.append((await client.score(picture))["brightness"])
    assert [score.from_store for score in results] == [False, True, True]
    assert len({score.raw for score in results}) == 1


async def test_a_change_is_an_alarm_in_the_answer_and_the_metrics(server: Server) -> None:
    await server.score(600)
    before = {entry.name: entry for entry in (await server.drift(model="tiny", label="web")).series}["brightness"]
    assert before.baseline is not None
    assert before.baseline.state == "frozen"
    await server.score(400, mean=170)

    def alarm() -> float | None:
        labels = {"model": "tiny", "version": "1", "label": "web", "kind": "score", "name": "brightness"}
        return server.app.metrics.registry.get_sample_value("critiq_drift_alarm", labels)

    await until(lambda: alarm() == 2.0)
    found = await server.drift(label="web")
    assert found.state == "alarm"
    entry = next(entry for entry in found.series if entry.name == "brightness")
    assert (entry.state, entry.against) == ("alarm", "baseline")
    assert entry.telling is not None
    comparison = entry.windows[entry.telling].comparisons["baseline"]
    assert comparison.ks is not None
    assert comparison.ks > 0.3
    assert comparison.p_value < 1e-8
    assert set(entry.windows[0].comparisons) == {"baseline", "reference"}
    histogram = entry.histogram
    assert histogram is not None
    assert all(len(shares) == len(histogram.edges) + 1 for shares in histogram.shares.values())
    assert all(sum(shares) == pytest.approx(1, abs=1e-6) for shares in histogram.shares.values())
    assert entry.sketches is None
    metrics = (await server.http.get(f"http://127.0.0.1:{server.app.metrics_port}/metrics")).text
    for name in ("ks", "psi", "wasserstein", "window_count"):
        assert f'critiq_drift_{name}{{kind="score",label="web",model="tiny",name="brightness",version="1"}}' in metrics

    new = await server.http.post("/v1/drift/baseline", json={"model": "tiny", "label": "web", "hours": 1})
    assert {entry["state"] for entry in new.json()["series"]} == {"steady"}
    await server.score(300, mean=145)  # as the last hour was on average
    assert (await server.drift(label="")).series == []


async def test_wrong_requests_are_refused_in_words(server: Server) -> None:
    await server.score(1)
    for path, status, words in [
        ("/v1/drift?sketch=true", 400, "unknown field 'sketch'; known: model, version, label, sketches"),
        ("/v1/drift?sketches=1", 400, "'1' is neither true nor false"),
        ("/v1/drift?version=1", 400, "name its model too"),
        ("/v1/drift?model=nobody", 404, "there is no model 'nobody'"),
        ("/v1/drift?model=tiny&version=9", 404, "9"),
    ]:
        response = await server.http.get(path)
        assert (response.status_code, words in response.json()["error"]["message"]) == (status, True), response.text
    for body, status, words in [
        (b"", 400, "Invalid JSON"),
        (b"{}", 400, "Field required"),
        (b'{"model": "tiny"}', 400, "either hours or requests"),
        (b'{"model": "tiny", "hours": 1, "when": 2}', 400, "Extra inputs"),
        (b'{"model": "tiny", "hours": "1"}', 400, "valid number"),
        (b'{"model": "tiny", "hours": NaN}', 400, ""),
        (b'{"model": "nobody", "hours": 1}', 404, "there is no model 'nobody'"),
        (b'{"model": "tiny", "name": "nothing", "hours": 1}', 404, "no such series"),
        (b'{"model": "tiny", "label": "web", "requests": 5}', 400, "100 to 10000000"),
    ]:
        response = await server.http.post(
            "/v1/drift/baseline", content=body, headers={"content-type": "application/json"}
        )
        assert (response.status_code, words in response.json()["error"]["message"]) == (status, True), response.text
    body = b'{"model": "tiny", "requests": 1000}'
    response = await server.http.post("/v1/drift/baseline", content=body, headers={"content-type": "text/plain"})
    assert (response.status_code, response.json()["error"]["field"]) == (400, "Content-Type")


async def test_baselines_cannot_be_set_unless_allowed_and_outlast_the_process(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    settings = make_settings(tmp_path, drift={**QUICK, "directory": tmp_path / "drift"})
    async with running(settings) as app, connected(app) as http:
        await Server(app, http).score(400)
        response = await http.post("/v1/drift/baseline", json={"model": "tiny", "hours": 1})
        assert (response.status_code, response.json()["error"]["code"]) == (403, "PERMISSION_DENIED")
    async with running(settings) as app, connected(app) as http:
        again = Server(app, http)
        assert await again.counts() == {"web": 400}
        assert {entry.baseline.state for entry in (await again.drift()).series if entry.baseline} == {"frozen"}
        await again.score(300, mean=180)
        await until(lambda: any(series.state == "alarm" for *_, series in app.service.drift.watched()))


async def test_the_answer_is_json_whatever_is_accepted(server: Server) -> None:
    response = await server.http.get("/v1/drift", headers={"accept": PROTOBUF})
    assert response.headers["content-type"] == "application/json"
    document = (await server.http.get("/openapi.json")).json()
    assert document["paths"]["/v1/drift"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert "DriftJson" in document["components"]["schemas"]


async def test_embeddings_of_the_built_in_model_are_watched(tmp_path: Path) -> None:
    drift = {"embedding_every": 1, "check_seconds": 60}
    settings = make_settings(tmp_path, default="critiq-builtin", drift=drift)
    async with running(settings) as app, connected(app) as http:
        async with AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
            pictures = RNG.integers(0, 255, (4, 64, 64, 3), np.uint8)
            for _ in range(2):  # the second time they come from the store, which says nothing new
                assert all(result.error is None for result in await client.score_batch(pictures))
        found = {(entry.kind, entry.name): entry for entry in (await Server(app, http).drift()).series}
        assert found["embedding", "quality_encoder"].count == 4
        assert found["score", "visual_quality"].count == 8
