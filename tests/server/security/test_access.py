"""Every route and every rpc behind keys, on a real server: what is open, what a key opens, and what it may ask for.

Routes are taken from the application and rpcs from the descriptors, so a new one fails here until it is in the table.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from starlette.routing import BaseRoute, Mount, Route
from structlog.testing import capture_logs

import critiq
import critiq.v1
from critiq.v1 import scoring_pb2
from critiq_server.api.access import http_scopes
from critiq_server.api.oip import rpc as inference
from critiq_server.app import App
from critiq_server.listening import StartError
from critiq_server.security.guard import Guard
from critiq_server.security.keys import SCOPES, append, new_key
from tests.server.jobs.test_jobs import POLICY
from tests.support.bundles import write_bundle, write_simulated
from tests.support.certificates import Authority
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

OPEN, SCORE, MODELS, METRICS, ADMIN, LISTING = "", "score", "models", "metrics", "admin", "score models"
ANY = "score models metrics admin"

HTTP = {
    "/": {"GET": OPEN},
    "/page/{name}": {"GET": OPEN},
    "/docs": {"GET": OPEN},
    "/docs/oauth2-redirect": {"GET": OPEN},
    "/openapi.json": {"GET": OPEN},
    "/healthz": {"GET": OPEN},
    "/readyz": {"GET": OPEN},
    "/v1/score": {"POST": SCORE},
    "/v1/score/batch": {"POST": SCORE},
    "/v1/score/stream": {"POST": SCORE},
    "/v1/rank": {"POST": SCORE},
    "/v1/compare": {"POST": SCORE},
    "/v1/prefetch": {"POST": SCORE},
    "/v1/moderate": {"POST": SCORE},
    "/v1/policies": {"GET": SCORE},
    "/v1/moderations": {"POST": SCORE},
    "/v1/jobs": {"POST": SCORE, "GET": SCORE},
    "/v1/jobs/{name}": {"GET": SCORE, "DELETE": SCORE},
    "/v1/jobs/{name}/results": {"GET": SCORE},
    "/v1/models": {"GET": LISTING},
    "/v1/models/{name}": {"GET": LISTING},
    "/v1/models/{name}/load": {"POST": MODELS},
    "/v1/models/{name}/unload": {"POST": MODELS},
    "/v1/models/{name}/shadow": {"GET": LISTING},
    "/v1/aliases": {"GET": LISTING},
    "/v1/aliases/{name}": {"GET": LISTING, "PUT": MODELS, "DELETE": MODELS},
    "/v1/aliases/{name}/promote": {"POST": MODELS},
    "/v1/aliases/{name}/rollback": {"POST": MODELS},
    "/v1/drift": {"GET": METRICS},
    "/v1/drift/baseline": {"POST": MODELS},
    "/v1/live": {"GET": METRICS},
    "/v1/admin/profile": {"POST": ADMIN},
    "/v1/admin/threads": {"GET": ADMIN},
    "/v2": {"GET": SCORE},
    "/v2/health/live": {"GET": OPEN},
    "/v2/health/ready": {"GET": OPEN},
    "/v2/repository/index": {"POST": LISTING},
    "/v2/repository/models/{name}/load": {"POST": MODELS},
    "/v2/repository/models/{name}/unload": {"POST": MODELS},
    "/v2/models/{name}": {"GET": SCORE},
    "/v2/models/{name}/ready": {"GET": SCORE},
    "/v2/models/{name}/config": {"GET": SCORE},
    "/v2/models/{name}/infer": {"POST": SCORE},
    "/v2/models/{name}/versions/{version}": {"GET": SCORE},
    "/v2/models/{name}/versions/{version}/ready": {"GET": SCORE},
    "/v2/models/{name}/versions/{version}/config": {"GET": SCORE},
    "/v2/models/{name}/versions/{version}/infer": {"POST": SCORE},
}
RPC = {
    "critiq.v1.Scoring": dict.fromkeys(
        ("Score", "ScoreBatch", "ScoreStream", "Rank", "Compare", "Prefetch", "Moderate", "Policies"), SCORE
    ),
    "critiq.v1.Models": {
        **dict.fromkeys(("List", "Get", "ListAliases", "GetShadowReport"), LISTING),
        **dict.fromkeys(("Load", "Unload", "SetAlias", "PromoteAlias", "RollbackAlias", "RemoveAlias"), MODELS),
    },
    "critiq.v1.Jobs": dict.fromkeys(("Submit", "Get", "List", "Results", "Cancel"), SCORE),
    "inference.GRPCInferenceService": {
        "ServerLive": OPEN,
        "ServerReady": OPEN,
        "ServerMetadata": SCORE,
        "ModelReady": SCORE,
        "ModelMetadata": SCORE,
        "ModelConfig": SCORE,
        "ModelInfer": SCORE,
        "ModelStreamInfer": SCORE,
        "RepositoryIndex": LISTING,
        "RepositoryModelLoad": MODELS,
        "RepositoryModelUnload": MODELS,
    },
    "grpc.health.v1.Health": {"Check": OPEN, "Watch": OPEN},
    "grpc.reflection.v1alpha.ServerReflection": {"ServerReflectionInfo": ANY},
}

module = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Server:
    app: App
    keys: dict[str, str]
    file: Path
    http: httpx.AsyncClient
    grpc: grpc.aio.Channel

    @property
    def guard(self) -> Guard:
        assert self.app._guard is not None
        return self.app._guard

    def new_key(self, *scopes: str, **limits: Any) -> str:
        """Another key, which the server takes up by itself."""
        text, key = new_key("another", scopes, **limits)
        append(self.file, key)
        return text

    def application(self) -> FastAPI:
        guarded: Any = self.app._rest.config.app
        application = guarded._app
        assert isinstance(application, FastAPI)
        return application


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    root = tmp_path_factory.mktemp("access")
    write_bundle(root / "bundles")
    (root / "bright.yaml").write_text(POLICY)
    keys = {}
    for scope in SCOPES:
        keys[scope], entry = new_key(f"{scope}-only", [scope])
        append(root / "keys.yaml", entry)
    face = {"enabled": True}
    sections: dict[str, Any] = {
        "security": {"keys_file": root / "keys.yaml", "reload_seconds": 0.05},
        "jobs": {"path": root / "jobs.db"},
        "models": {"allow_changes": True},
        "telemetry": {"profiling": True},
        "moderation": {"policies": [root / "bright.yaml"], "openai": face},
        "compat": {
            "pickle": {"enabled": True, "listeners": ["0=brightness"]},
            "flow_factory": face,
            "unirl": face,
            "cosmos": face,
        },
    }
    async with (
        running(make_settings(root / "bundles", **sections)) as app,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}") as http,
        grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel,
    ):
        yield Server(app, keys, root / "keys.yaml", http, channel)


def endpoints(routes: list[BaseRoute], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Path and method of every route."""
    for route in routes:
        if isinstance(route, Mount):
            yield from endpoints(list(route.routes), prefix + route.path)
        else:
            assert isinstance(route, Route), f"{route} is of a kind that this test does not know"
            for method in route.methods or ():
                yield (prefix + route.path).replace(":path}", "}"), method


async def status(server: Server, path: str, method: str, key: str = "") -> httpx.Response:
    for name in ("{name}", "{version}", "{reward}", "{rest}"):
        path = path.replace(name, "nothing")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    params = {"seconds": "0.1"} if path == "/v1/admin/profile" else {}
    return await server.http.request(method, path, headers=headers, params=params)


def expected(path: str, method: str) -> str:
    if path.startswith("/compat/"):  # all of it is scoring
        return SCORE
    assert path in HTTP, f"{method} {path} is a new route; decide which scope it needs, and put it into the table"
    by_method = HTTP[path]
    return by_method["GET" if method == "HEAD" and "GET" in by_method else method]


@module
async def test_every_route_asks_for_its_scope(server: Server) -> None:
    found = set(endpoints(list(server.application().routes)))
    assert {path for path, _ in found} >= set(HTTP), "the table has routes that are not there any more"
    stranger = new_key("stranger", SCOPES)[0]
    for path, method in sorted(found):
        scopes = expected(path, method).split()
        place = f"{method} {path}"
        for key in ("", stranger, "nonsense"):
            answered = await status(server, path, method, key)
            assert (answered.status_code == 401) == bool(scopes), f"{place}: {answered.status_code} {answered.text}"
            assert ("www-authenticate" in answered.headers) == bool(scopes), place
        for scope, key in server.keys.items():
            answered = await status(server, path, method, key)
            if scopes and scope not in scopes:
                assert answered.status_code == 403, f"{place} with {scope}: {answered.status_code}"
                assert method == "HEAD" or "needs a key with the scope" in answered.text
            else:
                assert answered.status_code not in (401, 403, 500), f"{place} with {scope}: {answered.text}"


def rpcs() -> Iterator[tuple[str, Any]]:
    files = [health_pb2.DESCRIPTOR, reflection_pb2.DESCRIPTOR]
    for found in pkgutil.iter_modules(critiq.v1.__path__):
        if found.name.endswith("_pb2"):
            files.append(importlib.import_module(f"critiq.v1.{found.name}").DESCRIPTOR)
    services = [service for file in files for service in file.services_by_name.values()]
    services.append(inference.DESCRIPTORS.FindServiceByName(inference.NAME))
    for service in services:
        for method in service.methods:
            yield service.full_name, method


async def called(channel: grpc.aio.Channel, service: str, method: Any, key: str = "") -> tuple[grpc.StatusCode, str]:
    """What a call without content comes to."""
    path = f"/{service}/{method.name}"
    metadata = (("authorization", f"Bearer {key}"),) if key else None
    try:
        if not method.client_streaming and not method.server_streaming:
            await channel.unary_unary(path)(b"", metadata=metadata, timeout=10)
        elif method.client_streaming:
            async for _ in channel.stream_stream(path)(iter(()), metadata=metadata, timeout=10):
                pass
        else:
            call = channel.unary_stream(path)(b"", metadata=metadata, timeout=10)
            await call.read()
            call.cancel()
    except grpc.aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


@module
async def test_every_rpc_asks_for_its_scope(server: Server) -> None:
    stranger = new_key("stranger", SCOPES)[0]
    refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    seen = set()
    for service, method in rpcs():
        place = f"{service}/{method.name}"
        seen.add(place)
        assert method.name in RPC.get(service, {}), f"{place} is new; decide which scope it needs"
        scopes = RPC[service][method.name].split()
        for key in ("", stranger):
            found, _ = await called(server.grpc, service, method, key)
            assert (found is refusals[0]) == bool(scopes), f"{place}: {found}"
        for scope, key in server.keys.items():
            found, details = await called(server.grpc, service, method, key)
            if scopes and scope not in scopes:
                assert found is refusals[1], f"{place} with {scope}: {found}"
                assert "needs a key with the scope" in details
            else:
                assert found not in refusals, f"{place} with {scope}: {found} {details}"
    assert seen == {f"{service}/{name}" for service, names in RPC.items() for name in names}


@module
async def test_reflection_names_no_service_that_is_not_in_the_table(server: Server) -> None:
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    call = server.grpc.stream_stream(path, response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
    metadata = (("x-api-key", server.keys["metrics"]),)
    async for answer in call(iter([request.SerializeToString()]), metadata=metadata):
        assert {service.name for service in answer.list_services_response.service} <= set(RPC)


def test_what_nobody_has_thought_of_is_closed() -> None:
    for path in ("/v3/new", "/healthz/", "/metrics", "//", "/page/a/b", "/V1/models", "/v2/health/live/x"):
        assert http_scopes("GET", path), path
    assert http_scopes("POST", "/healthz")
    assert http_scopes("GET", "/openapi.json", open_documents=False)
    assert not http_scopes("GET", "/readyz", open_documents=False)


@module
async def test_the_metrics_and_other_ports_ask_too(server: Server) -> None:
    async with httpx.AsyncClient() as client:
        metrics = f"http://127.0.0.1:{server.app.metrics_port}/metrics"
        assert (await client.get(metrics)).status_code == 401
        assert (await client.get(metrics, headers={"x-api-key": server.keys["score"]})).status_code == 403
        answered = await client.get(metrics, headers={"x-api-key": server.keys["metrics"]})
        assert answered.status_code == 200
        assert "critiq_requests" in answered.text
        listener = f"http://127.0.0.1:{server.app.compat_ports[0]}/"
        assert (await client.post(listener, content=b"")).status_code == 401
        assert (await client.post(listener, headers={"x-api-key": server.keys["models"]})).status_code == 403
        assert (await client.post(listener, headers={"x-api-key": server.keys["score"]})).status_code not in (401, 403)


@module
@pytest.mark.parametrize("face", ["grpc", "http"])
async def test_the_client_carries_its_key(server: Server, face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"127.0.0.1:{server.app.grpc_port}" if face == "grpc" else f"http://127.0.0.1:{server.app.rest_port}"
    key = server.keys["score"]
    async with critiq.AsyncClient(url) as client:
        for call in (client.score(flat()), anext(aiter(client.score_stream([flat()])))):
            with pytest.raises(critiq.Unauthenticated, match="needs an API key"):
                await call
    async with critiq.AsyncClient(url, api_key=key) as client:
        assert (await client.score(flat())).scores
        assert [item.error async for item in client.score_stream([flat(), flat(9)])] == [None, None]
        assert key not in repr(client)
        assert key not in repr(vars(client))
        with pytest.raises(critiq.PermissionDenied, match="scope models"):
            await client.load_model("tiny")
    async with critiq.AsyncClient(url, api_key=key, headers={"Authorization": "Basic eDp5"}) as client:
        assert (await client.score(flat())).scores
    monkeypatch.setenv("CRITIQ_API_KEY", key)
    async with critiq.AsyncClient(url) as client:
        assert (await client.score(flat())).scores
    async with critiq.AsyncClient(url, api_key="") as client:
        with pytest.raises(critiq.Unauthenticated):
            await client.score(flat())


@module
async def test_the_command_line_carries_its_key(server: Server) -> None:
    async def run(*before: str, **environment: str) -> tuple[int | None, str]:
        command = [sys.executable, "-m", "critiq.cli", *before, "models", f"--url=127.0.0.1:{server.app.grpc_port}"]
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        return process.returncode, said.decode()

    key = server.keys["score"]
    (refused, why), *answered = await asyncio.gather(run(), run("--api-key", key), run(CRITIQ_API_KEY=key))
    assert refused == 2
    assert "needs an API key" in why
    for status, said in answered:
        assert status == 0, said
        assert "tiny" in said
        assert key not in said


def test_a_key_that_no_header_can_carry_is_not_shown() -> None:
    with pytest.raises(critiq.InvalidArgument, match=r"^api_key: ") as caught:
        critiq.Client(api_key="critiq_1_secret\n")
    assert "secret" not in str(caught.value)


@module
@pytest.mark.parametrize("face", ["grpc", "http"])
async def test_a_key_has_its_limits(server: Server, face: str) -> None:
    key = server.new_key("score", requests_per_day=3)
    await until(lambda: server.guard._keys.find(key) is not None)
    url = f"127.0.0.1:{server.app.grpc_port}" if face == "grpc" else f"http://127.0.0.1:{server.app.rest_port}"
    async with critiq.AsyncClient(url, api_key=key, retries=0) as client:
        for _ in range(3):
            await client.score(flat())
        with pytest.raises(critiq.TooBusy, match="3 requests of this day") as caught:
            await client.score(flat())
    assert 0 < (caught.value.retry_after or 0) <= 86_400
    if face == "http":
        answered = await status(server, "/v1/models", "GET", key)
        assert answered.status_code == 429
        assert 0 < int(answered.headers["retry-after"]) <= 86_400


@module
async def test_items_of_a_stream_count_as_calls(server: Server) -> None:
    few, slow = server.new_key("score", requests_per_day=3), server.new_key("score", requests_per_second=20)
    await until(lambda: server.guard._keys.find(slow) is not None)
    url = f"127.0.0.1:{server.app.grpc_port}"
    async with critiq.AsyncClient(url, api_key=few, retries=0) as client:
        with pytest.raises(critiq.TooBusy, match="of this day"):
            _ = [item async for item in client.score_stream([flat(level) for level in range(5)])]
    async with critiq.AsyncClient(url, api_key=slow, retries=0) as client:
        started = asyncio.get_running_loop().time()
        found = [item async for item in client.score_stream([flat(level) for level in range(26)])]
        assert len(found) == 26
        assert asyncio.get_running_loop().time() - started >= 0.25  # 20 at once, 6 at 20 a second


@module
async def test_a_withdrawn_key_opens_nothing(server: Server) -> None:
    before = server.file.read_text()
    key = server.new_key("score")
    await until(lambda: server.guard._keys.find(key) is not None)
    assert (await status(server, "/v1/models", "GET", key)).status_code == 200
    server.file.write_text(before)
    await until(lambda: server.guard._keys.find(key) is None)
    assert (await status(server, "/v1/models", "GET", key)).status_code == 401


@module
async def test_what_administrators_do_is_in_the_audit_log(server: Server) -> None:
    metadata = (("authorization", f"bearer {server.keys['models']}"),)
    with capture_logs() as logs:
        assert (await status(server, "/v1/models/nothing/load", "POST", server.keys["models"])).status_code == 404
        load = server.grpc.unary_unary("/critiq.v1.Models/Load")
        await load(b"\n\x04tiny", metadata=metadata)
        await status(server, "/v1/models/nothing/load", "POST", server.keys["score"])
    audit = [
        {name: entry[name] for name in ("call", "key", "model", "outcome")}
        for entry in logs
        if entry["event"] == "audit"
    ]
    assert audit == [
        {"call": "load", "key": "models-only", "model": "nothing", "outcome": "NOT_FOUND"},
        {"call": "load", "key": "models-only", "model": "tiny", "outcome": "OK"},
    ]
    assert not any(key in str(logs) for key in server.keys.values())


@module
@pytest.mark.parametrize("face", ["grpc", "http"])
async def test_a_job_is_seen_by_its_own_callers_only(server: Server, face: str) -> None:
    stranger, own = server.new_key("score"), server.keys["score"]
    await until(lambda: server.guard._keys.find(stranger) is not None)
    url = f"127.0.0.1:{server.app.grpc_port}" if face == "grpc" else f"http://127.0.0.1:{server.app.rest_port}"
    async with critiq.AsyncClient(url, api_key=own) as client, critiq.AsyncClient(url, api_key=stranger) as other:
        job = await client.submit_job([flat()], key=face)
        assert (await client.submit_job([flat()], key=face)).id == job.id
        assert (await other.submit_job([flat(7)], key=face)).id != job.id  # keys of two callers are two keys
        for call in (other.job(job.id), other.job_results(job.id), other.cancel_job(job.id)):
            with pytest.raises(critiq.NotFound, match="there is no job"):
                await call
        assert job.id not in [found.id for found in await other.jobs()]
        assert job.id in [found.id for found in await client.jobs()]
        assert (await client.wait_job(job.id, timeout=20)).state == "done"


@module
async def test_refusals_do_not_flood_the_log(server: Server) -> None:
    server.guard._logged_at = float("-inf")
    with capture_logs() as logs:
        for _ in range(20):
            await status(server, "/v1/score", "POST", "nonsense")
    refused = [entry for entry in logs if entry["event"] == "refused"]
    assert len(refused) == 1
    assert refused[0]["call"] == "POST /v1/score"
    assert "nonsense" not in str(logs)


@module
async def test_large_bodies_without_a_key_get_the_same_answer(server: Server) -> None:
    answered = await server.http.post("/v1/score", content=bytes(20 * 2**20), headers={"Content-Type": "image/png"})
    assert answered.status_code == 401
    score = server.grpc.unary_unary("/critiq.v1.Scoring/Score", scoring_pb2.ScoreRequest.SerializeToString)
    request = scoring_pb2.ScoreRequest(image=scoring_pb2.Image(encoded=bytes(20 * 2**20)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await score(request)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert ("www-authenticate", 'Bearer realm="critiq"') in list(caught.value.initial_metadata() or ())


async def test_a_server_without_its_file_does_not_start(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    app = App(make_settings(tmp_path, security={"keys_file": tmp_path / "none.yaml"}))
    with pytest.raises(StartError, match="critiq keys new"):
        await app.start()


@pytest.mark.parametrize(
    ("has", "warning"),
    [
        ((), "without authentication"),
        (("keys",), "without TLS"),
        (("tls",), "without authentication"),
        (("keys", "tls"), None),
        (("tls", "client certificates"), None),
    ],
)
async def test_listening_further_warns_of_what_is_missing(
    tmp_path: Path, has: tuple[str, ...], warning: str | None
) -> None:
    write_bundle(tmp_path)
    security: dict[str, Any] = {}
    if "keys" in has:
        append(tmp_path / "keys.yaml", new_key("a", ["score"])[1])
        security["keys_file"] = tmp_path / "keys.yaml"
    if "tls" in has:
        files = Authority(tmp_path / "tls").server()
        security["tls"] = {"certificate": files.certificate, "key": files.key}
        if "client certificates" in has:
            security["tls"] |= {"client_ca": files.ca, "require_client_certificate": True}
    with capture_logs() as logs:
        async with running(make_settings(tmp_path, server={"host": "0.0.0.0"}, security=security)):
            pass
    said = [entry["event"] for entry in logs if entry["event"].startswith("listening beyond")]
    assert len(said) == (warning is not None)
    assert not said or str(warning) in said[0]


async def test_calls_under_way_are_limited_and_make_room_when_they_end(tmp_path: Path) -> None:
    write_simulated(tmp_path / "bundles", batch_ms=400)
    text, key = new_key("one-at-a-time", ["score"], concurrency=1)
    append(tmp_path / "keys.yaml", key)
    security = {"keys_file": tmp_path / "keys.yaml"}
    async with running(make_settings(tmp_path / "bundles", default="simulated", security=security)) as app:
        for level, url in ((1, f"127.0.0.1:{app.grpc_port}"), (11, f"http://127.0.0.1:{app.rest_port}")):
            async with critiq.AsyncClient(url, api_key=text, retries=0) as client:
                calls = [client.score(flat(level + more)) for more in range(2)]
                found = await asyncio.gather(*calls, return_exceptions=True)
                assert [isinstance(outcome, critiq.ScoreResult) for outcome in found].count(True) == 1, found
                refused = next(outcome for outcome in found if isinstance(outcome, critiq.TooBusy))
                assert "1 calls under way" in str(refused)
                with pytest.raises(critiq.DeadlineExceeded):
                    await client.score(flat(level + 2), timeout=0.1)
            async with critiq.AsyncClient(url, api_key=text, retries=30) as client:
                # Tries again until the server has noticed that the caller from before is gone.
                assert (await client.score(flat(level + 3))).scores
