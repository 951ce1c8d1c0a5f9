"""Models come and go while requests are answered."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from critiq import wire
from critiq.errors import FailedPrecondition, InvalidArgument, ModelNotLoaded, NotFound
from critiq.v1 import models_pb2
from critiq_server.app import App
from critiq_server.bundles import model as bundle_model
from critiq_server.listening import StartError
from tests.server.api.conftest import Server
from tests.support import requests
from tests.support.bundles import edit_manifest, write_bundle
from tests.support.faces import Refusal, ports
from tests.support.gates import held
from tests.support.servers import make_settings, running
from tests.support.waiting import until


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    write_bundle(tmp_path)
    write_bundle(tmp_path, name="other")
    settings = make_settings(tmp_path, models={"allow_changes": True}, engine={"store_mb": 0})
    async with running(settings) as app, ports(app) as connected:
        yield Server(app, connected)


async def brightness(server: Server, level: int = 51, **asked: Any) -> tuple[str, float]:
    """Version and value of a picture's score."""
    answer = await server.ports.ask("grpc", requests.score(requests.flat(level), **asked))
    assert not isinstance(answer, Refusal), answer
    score = answer["scores"][0]
    return score["model_version"], round(score["raw"], 4)


async def test_load_and_unload_over_both_faces(server: Server) -> None:
    data = await server.ports.grpc(
        "/critiq.v1.Models/Load", models_pb2.LoadModelRequest(name="other").SerializeToString()
    )
    assert isinstance(data, bytes)
    assert wire.model_from_proto(models_pb2.Model.FromString(data)).state == "ready"
    assert await brightness(server, model="other") == ("1", 0.2)
    response = await server.ports.http.post("/v1/models/other/unload")
    assert (response.status_code, response.json()) == (200, {})
    refusal = await server.ports.ask("json", requests.score(model="other"))
    assert isinstance(refusal, Refusal)
    assert refusal.code == "MODEL_NOT_LOADED"
    response = await server.ports.http.post("/v1/models/other/load?version=1")
    assert (response.status_code, response.json()["state"]) == (200, "ready")
    await server.ports.grpc("/critiq.v1.Models/Unload", models_pb2.UnloadModelRequest(name="other").SerializeToString())
    assert server.app.service.models.get("other").state == "available"


async def test_a_version_that_comes_later_is_found_and_becomes_the_default(server: Server, tmp_path: Path) -> None:
    assert await brightness(server) == ("1", 0.2)
    write_bundle(tmp_path, version="10", bias=0.1)
    write_bundle(tmp_path, version="9", bias=0.2)
    registry = server.app.service.registry
    assert (await registry.load("tiny")).version == "10"
    assert await brightness(server) == ("10", 0.3)
    await registry.load("tiny", "9")
    assert await brightness(server) == ("10", 0.3), "the newest that is loaded"
    assert await brightness(server, version="9") == ("9", 0.4)
    assert await brightness(server, version="1") == ("1", 0.2)
    await registry.unload("tiny", "10")
    assert await brightness(server) == ("9", 0.4)


async def test_reloading_under_fire_fails_nobody(server: Server, tmp_path: Path) -> None:
    registry = server.app.service.registry
    done = asyncio.Event()
    answered = 0

    async def hammer(face: str) -> None:
        nonlocal answered
        while not done.is_set():
            answer = await server.ports.ask(face, requests.score(requests.flat(answered % 200), "a cat"))
            assert not isinstance(answer, Refusal), answer
            answered += 1

    hammers = [asyncio.ensure_future(hammer(face)) for face in ("grpc", "json", "grpc", "file")]
    write_bundle(tmp_path, version="2")
    for _ in range(6):
        await registry.load("tiny", "2")
        await registry.load("tiny", "1")
        await registry.unload("tiny", "2")
    before = answered
    await until(lambda: answered > before + 20)
    done.set()
    await asyncio.gather(*hammers)
    await until(lambda: not registry._closing)


async def test_a_reload_takes_what_is_there_now(server: Server, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "tiny")
    write_bundle(tmp_path, bias=0.5)
    assert await brightness(server) == ("1", 0.2)
    await server.app.service.registry.load("tiny")
    assert await brightness(server) == ("1", 0.7)


@pytest.mark.parametrize("how", ["altered", "golden", "gone", "renamed"])
async def test_a_failed_reload_keeps_the_old_one_and_says_why(server: Server, tmp_path: Path, how: str) -> None:
    directory = tmp_path / "tiny" / "1"
    shutil.rmtree(directory)
    if how != "gone":
        write_bundle(tmp_path, bias=0.5, expected_shift=0.1 if how == "golden" else 0.0)
    if how == "altered":
        (directory / "head.onnx").write_bytes(b"something else")
    if how == "renamed":
        edit_manifest(directory, version="7")
    words = {"altered": "head.onnx", "golden": "golden", "gone": "manifest.json", "renamed": "'7'"}[how]
    with pytest.raises(FailedPrecondition, match=words):
        await server.app.service.registry.load("tiny", "1")
    over_rest = await server.ports.http.post("/v1/models/tiny/load?version=1")
    assert over_rest.status_code == 409
    assert words in over_rest.json()["error"]["message"]
    assert await brightness(server) == ("1", 0.2)
    described = server.app.service.models.get("tiny", "1")
    assert described.state == "ready"
    assert words in described.state_reason


async def test_pages_of_other_sites_change_nothing(server: Server) -> None:
    for path in ("/v1/models/tiny/load", "/v1/models/tiny/unload?version=1"):
        for site in ("cross-site", "same-site"):
            refused = await server.ports.http.post(path, headers={"Sec-Fetch-Site": site})
            assert refused.status_code == 403
            assert f"another site (Sec-Fetch-Site: {site})" in refused.json()["error"]["message"]
    assert (
        await server.ports.http.post("/v1/models/tiny/load", headers={"Sec-Fetch-Site": "same-origin"})
    ).status_code == 200


async def test_a_bundle_that_never_loaded_is_failed_until_it_is_mended(server: Server, tmp_path: Path) -> None:
    write_bundle(tmp_path, name="broken", expected_shift=1.0)
    registry = server.app.service.registry
    with pytest.raises(FailedPrecondition, match="golden"):
        await registry.load("broken")
    assert registry.describe("broken").state == "failed"
    with pytest.raises(ModelNotLoaded, match=r"failed, not loaded .*golden"), registry.lease("broken"):
        pass
    shutil.rmtree(tmp_path / "broken")
    write_bundle(tmp_path, name="broken")
    assert (await registry.load("broken")).state == "ready"
    assert registry.describe("broken").state_reason == ""


async def test_the_default_model_stays(server: Server, tmp_path: Path) -> None:
    registry = server.app.service.registry
    with pytest.raises(InvalidArgument, match="default"):
        await registry.unload("tiny")
    assert (await server.ports.http.post("/v1/models/tiny/unload")).status_code == 400
    write_bundle(tmp_path, version="2")
    await registry.load("tiny", "2")
    await registry.unload("tiny", "1")
    with pytest.raises(InvalidArgument, match="default"):
        await registry.unload("tiny", "2")
    assert registry.ready


async def test_what_is_unknown_is_not_found(server: Server) -> None:
    registry = server.app.service.registry
    for call in (
        registry.load("none"),
        registry.load("tiny", "7"),
        registry.unload("none"),
        registry.unload("tiny", "7"),
    ):
        with pytest.raises(NotFound):
            await call
    assert (await server.ports.http.post("/v1/models/none/load")).status_code == 404


async def test_unloading_waits_for_those_who_use_the_model(server: Server) -> None:
    registry = server.app.service.registry
    await registry.load("other")
    with held(server.app, "image_encoder", "other") as gate:
        running_request = asyncio.ensure_future(brightness(server, model="other"))
        await until(lambda: gate.computed == 1)
        unloading = asyncio.ensure_future(registry.unload("other"))
        await until(lambda: registry.describe("other").state == "available")
        with pytest.raises(ModelNotLoaded), registry.lease("other"):
            pass
        assert not unloading.done()
    assert await running_request == ("1", 0.2)
    await unloading


async def test_a_caller_that_leaves_while_unloading_leaves_nothing_behind(server: Server) -> None:
    registry = server.app.service.registry
    await registry.load("other")
    with held(server.app, "image_encoder", "other") as gate:
        running_request = asyncio.ensure_future(brightness(server, model="other"))
        await until(lambda: gate.computed == 1)
        unloading = asyncio.ensure_future(registry.unload("other"))
        await until(lambda: registry.describe("other").state == "available")
        unloading.cancel()
        await asyncio.gather(unloading, return_exceptions=True)
    assert await running_request == ("1", 0.2)
    await until(lambda: gate.batcher._closed and not registry._closing)


async def test_a_caller_that_leaves_while_loading_does_not_leave_it_loading(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    go = threading.Event()
    verify = bundle_model.verify_files

    def slowly(*arguments: Any) -> None:
        go.wait(120)
        verify(*arguments)

    monkeypatch.setattr(bundle_model, "verify_files", slowly)
    registry = server.app.service.registry
    loading = asyncio.ensure_future(registry.load("other"))
    await until(lambda: registry.describe("other").state == "loading")
    with pytest.raises(ModelNotLoaded) as refusal, registry.lease("other"):
        pass
    assert refusal.value.retry_after, "it will be there soon"
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    go.set()
    assert registry.describe("other").state == "available"
    assert (await registry.load("other")).state == "ready"


async def test_health_and_metrics_follow(server: Server) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    stub = health_pb2_grpc.HealthStub(server.ports.channel)

    async def serving(name: str) -> bool:
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def ready() -> float | None:
        return server.app.metrics.registry.get_sample_value("critiq_model_ready", {"model": "other", "version": "1"})

    await server.app.service.registry.load("other")
    assert await serving("models/other")
    assert await serving("models/other/1")
    assert ready() == 1
    await server.app.service.registry.unload("other")
    await until(lambda: not server.app._health_updates)
    assert not await serving("models/other")
    assert ready() == 0


def at_work() -> set[Any]:
    """Tasks of this event loop, and servers' threads in the whole process."""
    return asyncio.all_tasks() | {thread for thread in threading.enumerate() if thread.name.startswith("critiq-")}


async def test_a_server_without_its_default_model_does_not_start(tmp_path: Path) -> None:
    write_bundle(tmp_path, expected_shift=1.0)
    before = at_work()
    app = App(make_settings(tmp_path))
    with pytest.raises(StartError, match=r"'tiny' is not served: .*golden"):
        await app.start()
    await until(lambda: at_work() <= before)
    app = App(make_settings(tmp_path, default="none"))
    with pytest.raises(StartError, match="there is no model 'none'"):
        await app.start()
    await until(lambda: at_work() <= before)


async def test_a_broken_model_beside_the_default_one_does_not_stop_the_server(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    write_bundle(tmp_path, name="broken", expected_shift=1.0)
    async with running(make_settings(tmp_path, models={"load": ("tiny", "broken")})) as app:
        assert [app.service.models.get(name).state for name in ("tiny", "broken")] == ["ready", "failed"]


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    before = at_work()
    async with running(make_settings(tmp_path)) as app:
        for name in ("rest_port", "grpc_port", "metrics_port"):
            port = getattr(app, name)
            second = App(make_settings(tmp_path, server={name: port}))
            with pytest.raises(StartError, match=f"{port}.*--{name.replace('_', '-')}"):
                await second.start()
    await until(lambda: at_work() <= before)
