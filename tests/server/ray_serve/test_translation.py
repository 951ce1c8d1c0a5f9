"""What crosses Ray, and what Ray's own failures become: without a Ray."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from critiq.errors import CritiqError, DeadlineExceeded, Internal, NotFound, TooBusy, Unavailable
from critiq.v1 import scoring_pb2
from critiq_server.ray_serve.arguments import Arguments, SettingsError, read_arguments, replica_settings
from critiq_server.ray_serve.directory import LIFETIME_SECONDS, Directory, Endpoints
from critiq_server.ray_serve.failures import of_status
from critiq_server.ray_serve.frames import Failure, Frame, unpack
from critiq_server.ray_serve.http_ingress import RetryableFailures
from critiq_server.ray_serve.methods import ONE_PROCESS, STREAMS, UNARY, name_of
from critiq_server.ray_serve.routes import ThroughIngress, concerns_one
from critiq_server.ray_serve.scaling import IN_FLIGHT, by_pictures
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running

texts = st.text(max_size=20)
trailing = st.lists(st.tuples(texts, texts | st.binary(max_size=20)), max_size=3).map(tuple)


@given(st.binary() | st.builds(Failure, st.sampled_from(list(grpc.StatusCode)), texts, trailing))
def test_a_frame_holds_what_was_put_in(content: bytes | Failure) -> None:
    assert unpack(Frame(content).SerializeToString()) == content


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="no frame"):
        unpack(b"\x07what")


def test_the_names_that_ray_calls_are_unique() -> None:
    names = [name_of(method) for method in UNARY + STREAMS]
    assert len(set(names)) == len(names)
    assert not set(UNARY + STREAMS) & set(ONE_PROCESS)


def test_every_rpc_of_the_contract_passes_or_is_refused() -> None:
    from critiq.v1 import jobs_pb2, models_pb2

    known = {*UNARY, *STREAMS, *ONE_PROCESS}
    for file in (scoring_pb2, models_pb2, jobs_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            assert {f"/{service.full_name}/{method.name}" for method in service.methods} <= known


@pytest.mark.parametrize(
    ("status", "details", "kind"),
    [
        ("INTERNAL", "The actor died unexpectedly before finishing this task.\n\tclass_name: X", Unavailable),
        ("INTERNAL", "The actor 1234 is unavailable: The actor is temporarily unavailable", Unavailable),
        ("INTERNAL", "Replica x is no longer available.", Unavailable),
        ("INTERNAL", "something else with a prompt in it", Internal),
        ("RESOURCE_EXHAUSTED", "Request dropped due to backpressure", TooBusy),
        ("UNAVAILABLE", "Deployment failed to deploy", Unavailable),
        ("DEADLINE_EXCEEDED", "Request timed out after 310s.", DeadlineExceeded),
        ("NOT_FOUND", "Application metadata not set. Ping X for available applications.", Unavailable),
        ("NOT_FOUND", "Application 'x' not found. Ping X for available applications.", NotFound),
    ],
)
def test_rays_failures_become_our_errors(status: str, details: str, kind: type[CritiqError]) -> None:
    error = of_status(grpc.StatusCode[status], details)
    assert type(error) is kind
    assert (error.retry_after is not None) == kind.retryable
    assert "prompt" not in error.message


def test_a_stream_that_ray_cuts_off_goes_on_in_another() -> None:
    error = of_status(grpc.StatusCode.DEADLINE_EXCEEDED, "Request timed out after 310s.", stream=True)
    assert isinstance(error, Unavailable)
    assert "310s" in error.message


async def through(answers: list[dict[str, Any]], headers: dict[str, str] | None = None) -> httpx.Response:
    """What a caller gets when Ray's proxy sends these messages."""

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        for message in answers:
            await send(message)

    transport = httpx.ASGITransport(RetryableFailures(proxy))
    async with httpx.AsyncClient(transport=transport, base_url="http://ray") as client:
        return await client.post("/v1/score", headers=headers)


def rays(status: int, body: bytes = b"words of Ray") -> list[dict[str, Any]]:
    start = {"type": "http.response.start", "status": status, "headers": [(b"content-type", b"text/plain")]}
    return [start, {"type": "http.response.body", "body": body}]


async def test_an_answer_that_never_came_is_a_retryable_refusal() -> None:
    refused = await through([])
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["code"] == "UNAVAILABLE"
    assert refused.json()["error"]["retry_after_ms"] == 500
    message = await through([], {"accept": "application/x-protobuf"})
    assert scoring_pb2.Error.FromString(message.content).code == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("status", "ours", "code"),
    [(408, 504, "DEADLINE_EXCEEDED"), (404, 503, "UNAVAILABLE"), (429, 429, "TOO_BUSY"), (503, 503, "UNAVAILABLE")],
)
async def test_rays_own_words_over_http_become_our_errors(status: int, ours: int, code: str) -> None:
    refused = await through(rays(status))
    assert (refused.status_code, refused.json()["error"]["code"]) == (ours, code)


async def test_what_replicas_say_passes_as_it_is() -> None:
    start = {"type": "http.response.start", "status": 503, "headers": [(b"content-type", b"application/json")]}
    body = json.dumps({"error": {"code": "STOPPING"}}).encode()
    assert (await through([start, {"type": "http.response.body", "body": body}])).content == body
    assert (await through(rays(200))).text == "words of Ray"


def context(reported: dict[str, float], queued: float, target: float = 8) -> Any:
    config = SimpleNamespace(get_target_ongoing_requests=lambda: target)
    return SimpleNamespace(aggregated_metrics={IN_FLIGHT: reported}, total_queued_requests=queued, config=config)


def test_replicas_follow_the_pictures_under_way() -> None:
    assert by_pictures(context({"a": 8.0, "b": 8.0}, 0))[0] == 2
    assert by_pictures(context({"a": 8.0, "b": 8.5}, 0))[0] == 3
    assert by_pictures(context({"a": 0.0}, 30.0))[0] == 4
    assert by_pictures(context({}, 0))[0] == 0
    nothing = context({}, 0)
    nothing.aggregated_metrics = nothing.total_queued_requests = None
    assert by_pictures(nothing)[0] == 0


def test_settings_of_a_replica(tmp_path: Path) -> None:
    file = tmp_path / "critiq.yaml"
    file.write_text("server: {host: 0.0.0.0, rest_port: 8000}\nlimits: {in_flight: 300}\n")
    arguments = read_arguments({"config": str(file), "settings": {"limits": {"stream_window": 7}}})
    settings = replica_settings(arguments, tmp_path / "grpc")
    assert settings.server.rest_port == settings.server.grpc_port == settings.server.metrics_port == 0
    assert settings.server.host == "0.0.0.0"
    assert settings.server.grpc_socket == tmp_path / "grpc"
    assert (settings.limits.in_flight, settings.limits.stream_window) == (300, 7)
    named = Arguments(settings={"server": {"grpc_port": 9001}})
    assert replica_settings(named, tmp_path / "grpc").server.grpc_port == 9001


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"setings": {}}, "setings"),
        ({"settings": {"server": 1}}, "settings.server"),
        ({"settings": {"features": {"redis": {"urls": "redis://:secret@x"}}}}, "features.redis.urls"),
        ({"settings": {"limits": {"in_flight": "secret"}}}, "limits.in_flight"),
        ({"config": "/nowhere/critiq.yaml"}, "/nowhere/critiq.yaml"),
    ],
)
def test_wrong_settings_are_named_and_not_shown(args: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as refused:
        replica_settings(read_arguments(args), Path("grpc"))
    assert "secret" not in str(refused.value)


async def test_the_directory_forgets_the_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("critiq_server.ray_serve.directory.time.monotonic", lambda: now)
    directory = Directory()
    for name in ("b", "a"):
        await directory.note(Endpoints(name, "node", f"{name}:1", f"{name}:2", f"{name}:3"))
    assert [entry["replica"] for entry in await directory.list()] == ["a", "b"]
    now = LIFETIME_SECONDS
    await directory.note(Endpoints("a", "node", "a:1", "a:2", "a:3"))
    now = LIFETIME_SECONDS + 1
    assert [entry["grpc"] for entry in await directory.list()] == ["a:1"]
    await directory.forget("a")
    await directory.forget("a")
    assert await directory.list() == []


@pytest.mark.parametrize(
    ("method", "path", "refused"),
    [
        ("GET", "/v1/jobs", True),
        ("POST", "/v1/jobs", True),
        ("DELETE", "/v1/jobs/one", True),
        ("GET", "/v1/live", True),
        ("POST", "/v1/admin/profile", True),
        ("GET", "/v1/drift", True),
        ("POST", "/v1/models/tiny/load", True),
        ("GET", "/v1/models/tiny/shadow", True),
        ("POST", "/v2/repository/models/tiny/unload", True),
        ("PUT", "/v1/aliases/best", True),
        ("POST", "/v1/aliases/best/rollback", True),
        ("GET", "/v1/aliases", False),
        ("GET", "/v1/aliases/best", False),
        ("GET", "/v1/models/tiny", False),
        ("POST", "/v1/score", False),
        ("POST", "/v2/models/tiny/infer", False),
        ("POST", "/v2/repository/index", False),
    ],
)
async def test_what_one_replica_of_many_does_not_do(method: str, path: str, refused: bool) -> None:
    app = ThroughIngress(PlainTextResponse("passed"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://replica") as client:
        answered = await client.request(method, path)
    assert answered.status_code == (409 if refused else 200)
    if refused:
        assert answered.json()["error"]["code"] == "FAILED_PRECONDITION"


async def test_every_changing_route_of_the_face_is_decided(tmp_path: Path) -> None:
    """A new route that is about one process is to be named in routes.py."""
    write_bundle(tmp_path)
    async with running(make_settings(tmp_path)) as app:
        face: Any = app.http
        paths = [(route.path, method) for route in face.routes for method in getattr(route, "methods", None) or ()]
    passing = {path for path, method in paths if method in ("POST", "PUT", "DELETE") and not concerns_one(method, path)}
    assert {path for path in passing if path.startswith("/v1/")} == {
        "/v1/score",
        "/v1/score/batch",
        "/v1/score/stream",
        "/v1/rank",
        "/v1/compare",
        "/v1/prefetch",
        "/v1/moderate",
    }
