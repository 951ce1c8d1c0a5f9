"""Traces, as a collector on loopback gets them from real servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import trustme
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

import critiq
from critiq_server.app import App, StartError
from critiq_server.telemetry.settings import TraceSettings
from tests.support.bundles import write_bundle, write_simulated
from tests.support.collector import Collector, Seen, collecting
from tests.support.gates import held
from tests.support.receiver import receiving
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

STAGES = ("image_encoder", "text_encoder", "head")
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UNSAMPLED = CALLER.removesuffix("1") + "0"
CALLER_TRACE, CALLER_SPAN = CALLER.split("-")[1:3]
PROMPT = "a red cat"


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as found:
        yield found


@asynccontextmanager
async def traced(
    root: Path, collector: Collector, default: str = "tiny", sections: dict[str, Any] | None = None, **traces: Any
) -> AsyncIterator[tuple[App, critiq.AsyncClient, httpx.AsyncClient]]:
    """A server that sends its traces to ``collector``, all of them by the end of the block, and clients of it."""
    telemetry = {"traces": {"endpoint": f"http://127.0.0.1:{collector.port}"} | traces}
    settings = make_settings(root, default=default, telemetry=telemetry, **(sections or {}))
    async with running(settings) as app:
        rest = httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}")
        async with critiq.AsyncClient(f"127.0.0.1:{app.grpc_port}") as grpc, rest:
            yield app, grpc, rest


def below(collector: Collector, span: Seen) -> list[str]:
    return [other.name for other in collector.spans if other.parent == span.id]


async def test_a_call_is_traced_from_its_caller_to_each_stage(tmp_path: Path, collector: Collector) -> None:
    write_bundle(tmp_path)
    async with traced(tmp_path, collector) as (_, _, rest):
        headers = {"traceparent": CALLER, "content-type": "image/png"}
        asked = {"prompt": PROMPT, "model": "tiny"}
        answer = await rest.post("/v1/score", params=asked, content=flat(7), headers=headers)
        assert answer.headers["x-trace-id"] == CALLER_TRACE
    (call,) = collector.named("POST /v1/score")
    assert (call.trace, call.parent, call.kind, call.failed) == (CALLER_TRACE, CALLER_SPAN, 2, False)
    assert call.attributes["http.response.status_code"] == 200
    assert (call.attributes["critiq.operation"], call.attributes["critiq.model"]) == ("score", "tiny")
    steps = ("decode", *STAGES)
    assert sorted(below(collector, call)) == sorted(f"{step} {what}" for step in steps for what in ("queue", "compute"))
    for step in steps:
        (queue,), (compute,) = collector.named(f"{step} queue"), collector.named(f"{step} compute")
        (batch,) = collector.named(f"{step} batch")
        assert call.start <= queue.start <= queue.end == compute.start <= compute.end <= call.end
        assert compute.links == ((batch.trace, batch.id),)
        assert batch.links == ((compute.trace, compute.id),)
        assert compute.attributes["critiq.batch.size"] == 1
    (compute,) = collector.named("head compute")
    assert compute.attributes == {
        "critiq.batch.size": 1,
        "critiq.model": "tiny",
        "critiq.model.version": "1",
        "critiq.provider": "CPUExecutionProvider",
        "critiq.stage": "head",
    }
    assert collector.resource["service.name"] == "critiq"
    assert PROMPT not in str(collector.spans)


async def test_requests_of_one_connection_are_traces_of_their_own(tmp_path: Path, collector: Collector) -> None:
    write_bundle(tmp_path)
    async with traced(tmp_path, collector) as (app, _, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", app.rest_port)
        asked = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
        writer.write(asked * 3)  # the second before the first is answered
        answered = b""
        while answered.count(b"x-trace-id") < 3:
            answered += await asyncio.wait_for(reader.read(2**16), 120)
        writer.close()
    calls = collector.named("GET /v1/models")
    assert [call.parent for call in calls] == ["", "", ""]
    assert len({call.trace for call in calls}) == 3


async def test_grpc_calls_errors_and_what_was_stored(tmp_path: Path, collector: Collector) -> None:
    write_bundle(tmp_path)
    sections = {"features": {"disk": {"path": tmp_path / "features"}, "also": ["tiny/image_encoder"]}}
    async with traced(tmp_path, collector, sections=sections) as (_, grpc, rest):
        await grpc.score(flat(7))
        await grpc.score(flat(7))
        results = await grpc.score_batch([(flat(8), PROMPT), b"no picture"])
        assert [result.error is None for result in results] == [True, False]
        with pytest.raises(critiq.NotFound):
            await grpc.score(flat(7), model="nobody")
        assert (await rest.get("/v1/models/no such")).status_code == 404
        assert (await rest.get("/nowhere/at/all")).status_code == 404
        assert (await rest.get("/v2/models/tiny")).status_code == 200
        await rest.get("/healthz")
    first, second, refused = collector.named("critiq.v1.Scoring/Score")
    assert first.attributes["rpc.grpc.status_code"] == 0
    (looked,) = [span for span in collector.named("look up below memory") if span.parent == first.id]
    assert looked.attributes == {"critiq.stage": "image_encoder", "critiq.found": False}
    assert [event for event in second.events if event[0] == "found in memory"] == [
        ("found in memory", {"critiq.stage": "image_encoder"})
    ]
    assert below(collector, second) == []
    assert (refused.attributes["critiq.model"], refused.attributes["rpc.grpc.status_code"]) == ("unknown", 5)
    assert not refused.failed  # the caller's mistake is no error of this server
    (batch,) = collector.named("critiq.v1.Scoring/ScoreBatch")
    items = [span for span in collector.named("item") if span.parent == batch.id]
    assert [item.attributes["critiq.code"] for item in items] == ["OK", "INVALID_ARGUMENT"]
    assert "image_encoder compute" in below(collector, items[0])
    names = {span.name for span in collector.spans}
    assert {"GET /v1/models/{name}", "GET", "GET /v2/models/{name:path}"} <= names
    assert not [span for span in collector.spans if "nobody" in str(span) or "no such" in str(span)]
    assert not [name for name in names if "health" in name]


async def test_a_batch_is_linked_with_all_that_ride_in_it(tmp_path: Path, collector: Collector) -> None:
    write_simulated(tmp_path)
    async with traced(tmp_path, collector, "simulated") as (app, grpc, _):
        with held(app, "device") as gate:
            calls = [asyncio.ensure_future(grpc.score(flat(0)))]
            await until(lambda: gate.batcher.running == 1)
            calls += [asyncio.ensure_future(grpc.score(flat(level))) for level in (1, 2, 3)]
            await until(lambda: gate.batcher.waiting == 3)
            gate.release()
            await asyncio.gather(*calls)
    batches = collector.named("device batch")
    assert [span.attributes["critiq.batch.size"] for span in batches] == [1, 3]
    riding = [span for span in collector.named("device compute") if span.attributes["critiq.batch.size"] == 3]
    assert set(batches[1].links) == {(span.trace, span.id) for span in riding}
    assert len({span.trace for span in riding}) == 3
    waited = [span for span in collector.named("device queue") if span.end == riding[0].start]
    assert len(waited) == 3
    assert all(span.end - span.start > 0 for span in waited)


async def test_jobs_are_linked_with_the_call_that_submitted_them(tmp_path: Path, collector: Collector) -> None:
    write_bundle(tmp_path)
    for tell in (False, True):
        async with receiving() as receiver:
            jobs = {"path": tmp_path / f"{tell}.db", "callbacks": receiver.settings()}
            async with traced(tmp_path, collector, sections={"jobs": jobs}, tell_hosts=tell) as (app, grpc, _):
                await grpc.submit_job([critiq.Item(flat(5), PROMPT)], callback=receiver.url)
                value = app.metrics.registry.get_sample_value
                await until(lambda: value("critiq_job_callbacks_total", {"outcome": "delivered"}) == 1)  # noqa: B023
            assert ("traceparent" in receiver.site.asked[0].headers) is tell
    for submitted, portion, callback in zip(
        collector.named("critiq.v1.Jobs/Submit"),
        collector.named("job portion"),
        collector.named("callback"),
        strict=True,
    ):
        assert portion.links == callback.links == ((submitted.trace, submitted.id),)
        assert len({submitted.trace, portion.trace, callback.trace}) == 3
        assert below(collector, portion) == ["item"]
        assert callback.attributes["critiq.outcome"] == "delivered"
    assert receiver.url not in str(collector.spans)


@pytest.mark.parametrize(
    ("settings", "sent", "expected"),
    [
        ({"sample_ratio": 0.0}, None, []),
        ({"sample_ratio": 0.0}, CALLER, [(CALLER_TRACE, CALLER_SPAN)]),
        ({"sample_ratio": 1.0}, UNSAMPLED, []),
        ({}, UNSAMPLED, []),
        ({"follow_callers": False}, UNSAMPLED, [("", "")]),
    ],
)
async def test_who_decides_what_is_traced(
    tmp_path: Path, collector: Collector, settings: dict[str, Any], sent: str | None, expected: list[tuple[str, str]]
) -> None:
    write_bundle(tmp_path)
    async with traced(tmp_path, collector, **settings) as (_, _, rest):
        headers = {"traceparent": sent} if sent else {}
        answer = await rest.get("/v1/models", headers=headers)
        assert len(answer.headers["x-trace-id"]) == 32
    found = [(span.trace, span.parent) for span in collector.named("GET /v1/models")]
    if settings.get("follow_callers") is False:
        (own,) = collector.named("GET /v1/models")
        assert own.links == ((CALLER_TRACE, CALLER_SPAN),)
        assert own.trace != CALLER_TRACE
        found = [("", own.parent)]
    assert found == expected


async def test_the_environment_speaks_opentelemetry(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "scorer-7")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=tests")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=mine")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")
    write_bundle(tmp_path)
    async with traced(tmp_path, collector) as (_, _, rest):
        await rest.get("/v1/models")
    assert collector.spans == []
    async with traced(tmp_path, collector, sample_ratio=1.0) as (_, _, rest):
        await rest.get("/v1/models")
    assert collector.resource["service.name"] == "scorer-7"
    assert collector.resource["deployment.environment"] == "tests"
    assert collector.metadata["x-tenant"] == "mine"


async def test_spans_go_over_tls_to_a_trusted_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_bundle(tmp_path)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    pair = authority.issue_cert("localhost")
    chain = b"".join(blob.bytes() for blob in pair.cert_chain_pems)
    credentials = grpc.ssl_server_credentials([(pair.private_key_pem.bytes(), chain)])
    with collecting(credentials) as collector:
        address = {"endpoint": f"https://localhost:{collector.port}"}
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_CERTIFICATE", str(tmp_path / "ca.pem"))
        async with traced(tmp_path, collector, **address) as (_, _, rest):
            await rest.get("/v1/models")
        assert len(collector.named("GET /v1/models")) == 1
        monkeypatch.delenv("OTEL_EXPORTER_OTLP_CERTIFICATE")  # of an authority that nobody knows
        monkeypatch.setattr("critiq_server.telemetry.tracer._FLUSH_SECONDS", 1.0)
        async with traced(tmp_path, collector, **address) as (_, _, rest):
            assert (await rest.get("/v1/models")).status_code == 200
        assert len(collector.named("GET /v1/models")) == 1


@pytest.mark.parametrize("state", ["down", "broken", "slow"])
async def test_a_collector_that_fails_costs_no_request(
    tmp_path: Path, collector: Collector, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "64")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "16")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    monkeypatch.setattr("critiq_server.telemetry.tracer._FLUSH_SECONDS", 1.0)
    write_bundle(tmp_path)
    collector.broken, collector.delay = state == "broken", 30.0 if state == "slow" else 0.0
    if state == "down":
        collector.port = 9  # nothing listens there
    async with traced(tmp_path, collector) as (app, grpc, _):
        failed = failures(app)
        for level in range(60):  # more spans than the queue holds
            assert (await grpc.score(flat(level), PROMPT))["brightness"].raw == pytest.approx(level / 255, abs=1e-3)
        await until(lambda: failures(app) > failed)
        stopping = time.monotonic()
    assert time.monotonic() - stopping < 25, "it does not wait for a collector that takes half a minute"


def failures(app: App) -> float:
    return app.metrics.registry.get_sample_value("critiq_trace_spans_total", {"outcome": "failed"}) or 0.0


async def test_spans_are_counted(tmp_path: Path, collector: Collector) -> None:
    write_bundle(tmp_path)
    async with traced(tmp_path, collector) as (app, grpc, _):

        def counted() -> list[float]:
            value = app.metrics.registry.get_sample_value
            return [value("critiq_trace_spans_total", {"outcome": kind}) or 0.0 for kind in ("made", "exported")]

        before = counted()
        await grpc.score(flat(7), PROMPT)
    made, exported = (after - old for after, old in zip(counted(), before, strict=True))
    assert made == exported == len(collector.spans) == 13


async def test_what_fails_in_a_stage_is_seen_and_not_what_it_said(tmp_path: Path, collector: Collector) -> None:
    write_bundle(tmp_path)
    async with traced(tmp_path, collector) as (app, grpc, _):
        with app.service.registry.lease() as served:
            runtime: Any = served.model.stages["image_encoder"].runtime

        def fails(inputs: Any) -> Any:
            raise RuntimeError("values of the caller")

        runtime.run = fails
        with pytest.raises(critiq.CritiqError):
            await grpc.score(flat(7))
    (call,) = collector.named("critiq.v1.Scoring/Score")
    assert call.failed
    assert call.attributes["critiq.code"] in ("INTERNAL", "UNAVAILABLE")
    assert "values of the caller" not in str(collector.spans)


async def test_a_client_with_a_current_span_is_its_parent(tmp_path: Path, collector: Collector) -> None:
    write_bundle(tmp_path)
    tracer = TracerProvider(id_generator=RandomIdGenerator()).get_tracer("caller")
    async with traced(tmp_path, collector) as (app, grpc, _):
        with tracer.start_as_current_span("work") as own:
            context = own.get_span_context()
            await grpc.score(flat(7))
            async for result in grpc.score_stream([flat(8)]):
                assert result.error is None
            async with critiq.AsyncClient(f"http://127.0.0.1:{app.rest_port}") as rest:
                await rest.score(flat(9))
            await asyncio.to_thread(blocking, app)
        await grpc.compare(flat(1), flat(2))  # outside of any span
    names = ("critiq.v1.Scoring/Score", "critiq.v1.Scoring/ScoreStream", "POST /v1/score", "critiq.v1.Scoring/Rank")
    for name in names:
        (call,) = collector.named(name)
        assert (call.trace, call.parent) == (f"{context.trace_id:032x}", f"{context.span_id:016x}"), name
    assert collector.named("critiq.v1.Scoring/Compare")[0].parent == ""


def blocking(app: App) -> None:
    with critiq.Client(f"127.0.0.1:{app.grpc_port}") as client:
        client.rank([flat(1), flat(2)])


async def test_traces_that_cannot_be_had_stop_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for endpoint in ("localhost:4317", "http://", "ftp://localhost", "http://localhost/v1/traces"):
        with pytest.raises(ValueError, match="must be http://HOST:PORT"):
            TraceSettings(endpoint=endpoint)
    write_bundle(tmp_path)
    with monkeypatch.context() as patched:
        patched.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")
        with pytest.raises(StartError, match=r"cannot be sent to http://localhost:1 .*soon.*OTEL_"):
            await App(make_settings(tmp_path, telemetry={"traces": {"endpoint": "http://localhost:1"}})).start()
    monkeypatch.setitem(__import__("sys").modules, "critiq_server.telemetry.tracer", None)
    settings = make_settings(tmp_path, telemetry={"traces": {"endpoint": "http://localhost:1"}})
    with pytest.raises(StartError, match=r"pip install 'critiq\[telemetry\]'"):
        await App(settings).start()
