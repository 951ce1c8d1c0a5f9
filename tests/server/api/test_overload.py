"""Too much work, too little time, callers that leave: a definite answer each, and nothing computed for nobody."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio

from critiq.v1 import scoring_pb2
from critiq_server.app import App
from tests.server.api.conftest import Server
from tests.support import requests
from tests.support.bundles import write_simulated
from tests.support.faces import PROTOBUF, Refusal, ports
from tests.support.gates import Gate, held
from tests.support.servers import make_settings, running
from tests.support.waiting import until

SCORE = "/critiq.v1.Scoring/Score"


@dataclass
class HeldServer(Server):
    gate: Gate

    def started(self, level: int = 1, face: str = "grpc", **options: Any) -> asyncio.Task[Any]:
        return asyncio.ensure_future(self.ports.ask(face, requests.score(requests.flat(level)), **options))

    @property
    def accepted(self) -> int:
        return self.app.service.admission.items

    async def waiting(self, count: int) -> None:
        """Returns once ``count`` pictures were accepted and all but the one that is computed wait for the device."""
        await until(lambda: self.accepted == count and self.gate.batcher.waiting == count - 1)

    async def blocked(self) -> asyncio.Task[Any]:
        """Keeps the device busy with one picture."""
        task = self.started(1)
        await until(lambda: self.gate.computed == 1)
        return task


@asynccontextmanager
async def holding(root: Path, **limits: Any) -> AsyncIterator[HeldServer]:
    """A server whose device computes one picture at a time, and only when it is let."""
    write_simulated(root, batch_ms=1.0, max_batch=1)
    async with running(make_settings(root, default="simulated", limits=limits)) as app, ports(app) as connected:
        with held(app, "device") as gate:
            yield HeldServer(app, connected, gate)


@pytest_asyncio.fixture
async def slow(tmp_path: Path) -> AsyncIterator[HeldServer]:
    async with holding(tmp_path, in_flight=4, batch_items=4) as server:
        yield server


def sample(app: App, name: str, **labels: str) -> float:
    return app.metrics.registry.get_sample_value(name, labels) or 0.0


def dropped(server: Server) -> float:
    return sample(server.app, "critiq_dropped_total", model="simulated", stage="device")


@pytest.mark.parametrize("face", ["grpc", "json", "protobuf", "form", "file"])
async def test_too_busy(slow: HeldServer, face: str) -> None:
    accepted = [slow.started(level) for level in range(4)]
    await until(lambda: slow.accepted == 4)
    refusal = await slow.ports.ask(face, requests.score(requests.flat(9)))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == ("RESOURCE_EXHAUSTED" if face == "grpc" else 429, "TOO_BUSY")
    assert "4 pictures" in refusal.message
    assert refusal.retry_after_ms is not None
    assert 0 < refusal.retry_after_ms <= 10_000
    assert sample(slow.app, "critiq_rejected_total", reason="TOO_BUSY") == 1
    slow.gate.release()
    for answer in await asyncio.gather(*accepted):
        assert not isinstance(answer, Refusal), "what was accepted is answered"


async def test_a_batch_is_accepted_whole_or_not_at_all(slow: HeldServer) -> None:
    accepted = slow.started()
    await until(lambda: slow.accepted == 1)
    refusal = await slow.ports.ask("grpc", requests.batch([requests.score(requests.flat(9))] * 4))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "TOO_BUSY"
    assert slow.accepted == 1
    slow.gate.release()
    await accepted


async def test_a_stream_is_slowed_down_and_not_refused(slow: HeldServer) -> None:
    items = requests.batch([requests.score(requests.flat(1))] * 12, [str(number) for number in range(12)]).items
    accepted = [slow.started(1) for _ in range(3)]
    call = slow.ports.channel.stream_stream("/critiq.v1.Scoring/ScoreStream")
    answers = call(iter([item.SerializeToString() for item in items]))
    await until(lambda: slow.accepted == 4)
    slow.gate.release()
    seen = set()
    async for data in answers:
        message = scoring_pb2.ScoreItemResult.FromString(data)
        assert message.WhichOneof("outcome") == "response", message.error
        seen.add(message.id)
        assert slow.accepted <= 4
    assert seen == {str(number) for number in range(12)}
    await asyncio.gather(*accepted)


async def test_a_deadline_that_passes_over_grpc(slow: HeldServer) -> None:
    blocking = await slow.blocked()
    late = slow.started(2, timeout=0.2)
    refusal = await late
    assert isinstance(refusal, Refusal)
    assert refusal.status == "DEADLINE_EXCEEDED"
    slow.gate.release()
    await blocking
    await until(lambda: slow.accepted == 0)
    assert slow.gate.computed == 1, "the late one was never computed"
    assert dropped(slow) == 1


@pytest.mark.parametrize("content_type", ["image/png", PROTOBUF])
async def test_a_deadline_that_passes_over_rest(slow: HeldServer, content_type: str) -> None:
    blocking = await slow.blocked()
    request = requests.score(requests.flat(2))
    content = request.image.encoded if content_type == "image/png" else request.SerializeToString()
    headers = {"content-type": content_type, "critiq-timeout-ms": "200", "accept": "application/json"}
    response = await slow.ports.http.post("/v1/score", content=content, headers=headers)
    assert response.status_code == 504
    error = response.json()["error"]
    assert error["code"] == "DEADLINE_EXCEEDED"
    assert "0.2 s" in error["message"]
    slow.gate.release()
    await blocking
    await until(lambda: slow.accepted == 0)
    assert slow.gate.computed == 1


async def test_the_items_of_a_batch_are_late_one_by_one(slow: HeldServer) -> None:
    request = requests.batch([requests.score(requests.flat(level)) for level in (1, 2, 3)])
    slow.gate.let_go()
    headers = {"content-type": PROTOBUF, "critiq-timeout-ms": "1000", "accept": "application/json"}
    response = await slow.ports.http.post("/v1/score/batch", content=request.SerializeToString(), headers=headers)
    results = response.json()["results"]
    assert sorted(result["error"]["code"] if result["error"] else "OK" for result in results) == [
        "DEADLINE_EXCEEDED",
        "DEADLINE_EXCEEDED",
        "OK",
    ]


@pytest.mark.parametrize("face", ["grpc", "json"])
async def test_calls_without_a_deadline_get_the_servers(tmp_path: Path, face: str) -> None:
    async with holding(tmp_path, timeout_seconds=0.2) as server:
        refusal = await server.started(face=face, timeout=None)
    assert isinstance(refusal, Refusal)
    assert refusal.status == ("DEADLINE_EXCEEDED" if face == "grpc" else 504)
    assert "0.2 s" in refusal.message


@pytest.mark.parametrize("face", ["grpc", "json"])
async def test_no_caller_may_set_a_longer_deadline_than_the_server_allows(tmp_path: Path, face: str) -> None:
    async with holding(tmp_path, max_timeout_seconds=0.2) as server:
        server.ports.http.headers["critiq-timeout-ms"] = "60000"
        refusal = await server.started(face=face, timeout=60)
    assert isinstance(refusal, Refusal)
    assert refusal.status == ("DEADLINE_EXCEEDED" if face == "grpc" else 504)
    assert "0.2 s" in refusal.message


async def test_a_grpc_call_that_is_cancelled_is_not_computed(slow: HeldServer) -> None:
    blocking = await slow.blocked()
    call = slow.ports.channel.unary_unary(SCORE)(requests.score(requests.flat(2)).SerializeToString())
    await slow.waiting(2)
    call.cancel()
    await until(lambda: slow.accepted == 1)
    slow.gate.release()
    await blocking
    assert not isinstance(await slow.started(3), Refusal)
    assert slow.gate.computed == 2
    assert dropped(slow) == 1


async def test_a_stream_that_is_cancelled_is_not_computed(slow: HeldServer) -> None:
    blocking = await slow.blocked()
    items = requests.batch([requests.score(requests.flat(2))] * 3, ["a", "b", "c"]).items
    call = slow.ports.channel.stream_stream("/critiq.v1.Scoring/ScoreStream")()
    for item in items:
        await call.write(item.SerializeToString())
    await until(lambda: slow.accepted == 4)
    call.cancel()
    await until(lambda: slow.accepted == 1)
    slow.gate.release()
    await blocking
    assert not isinstance(await slow.started(3), Refusal)
    assert slow.gate.computed == 2


@pytest.mark.parametrize("path", ["/v1/score", "/v1/score/batch", "/v1/score/stream", "/v1/rank", "/v1/compare"])
async def test_a_caller_that_hangs_up_over_http_is_not_computed_for(slow: HeldServer, path: str) -> None:
    blocking = await slow.blocked()
    one = requests.score(requests.flat(2))
    body = {
        "/v1/score": one,
        "/v1/rank": requests.rank([requests.flat(2)]),
        "/v1/compare": requests.compare(requests.flat(2), requests.flat(2)),
    }.get(path, requests.batch([one]))
    async with httpx.AsyncClient(base_url=slow.ports.http.base_url, trust_env=False) as leaving:
        headers = {"content-type": PROTOBUF}
        request = asyncio.ensure_future(leaving.post(path, content=body.SerializeToString(), headers=headers))
        await until(lambda: slow.accepted > 1)
        request.cancel()
    await until(lambda: slow.accepted == 1)
    slow.gate.release()
    await blocking
    assert not isinstance(await slow.started(3), Refusal)
    assert slow.gate.computed == 2


async def test_one_of_two_who_share_a_computation_may_leave(slow: HeldServer) -> None:
    blocking = await slow.blocked()
    leaving = slow.ports.channel.unary_unary(SCORE)(requests.score(requests.flat(2)).SerializeToString())
    await slow.waiting(2)
    staying = slow.started(2, face="json")
    await until(lambda: slow.accepted == 3)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    slow.gate.release()
    answer = await staying
    assert not isinstance(answer, Refusal)
    assert answer["scores"][0]["raw"] == 2.0
    await blocking
    assert slow.gate.computed == 2


async def test_bulk_work_gives_way(slow: HeldServer) -> None:
    blocking = await slow.blocked()
    done: list[str] = []

    async def ask(level: int, priority: Any, name: str) -> None:
        request = requests.score(requests.flat(level))
        request.priority = priority
        await slow.ports.ask("grpc", request)
        done.append(name)

    bulk = asyncio.ensure_future(ask(2, scoring_pb2.PRIORITY_BULK, "bulk"))
    await slow.waiting(2)
    now = asyncio.ensure_future(ask(3, scoring_pb2.PRIORITY_INTERACTIVE, "interactive"))
    await slow.waiting(3)
    slow.gate.release()
    await asyncio.gather(blocking, bulk, now)
    assert done == ["interactive", "bulk"]


async def test_a_stopping_server_answers_what_it_has_and_refuses_the_rest(tmp_path: Path) -> None:
    write_simulated(tmp_path, batch_ms=1.0, max_batch=1)
    app = App(make_settings(tmp_path, default="simulated"))
    await app.start()
    async with ports(app) as connected:
        with held(app, "device") as gate:
            server = HeldServer(app, connected, gate)
            accepted = [server.started(1), server.started(2, face="json")]
            await until(lambda: server.accepted == 2)
            stopping = asyncio.ensure_future(app.stop())
            await asyncio.sleep(0.05)
            for face, status in (("grpc", "UNAVAILABLE"), ("json", 503)):
                refusal = await server.started(3, face=face)
                assert isinstance(refusal, Refusal)
                assert (refusal.status, refusal.code) == (status, "STOPPING")
            assert (await connected.http.get("/readyz")).status_code == 503
            assert (await connected.http.get("/healthz")).status_code == 200
        for answer in await asyncio.gather(*accepted):
            assert not isinstance(answer, Refusal)
        await stopping
        with pytest.raises((httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError)):
            await connected.http.get("/healthz")
        with pytest.raises(grpc.aio.AioRpcError):
            await connected.channel.unary_unary(SCORE)(b"", timeout=5)
