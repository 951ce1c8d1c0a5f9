"""What an operator sees: models, health, reflection, metrics, the API's own description."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from pydantic import TypeAdapter

from critiq import types, wire
from critiq.v1 import models_pb2
from critiq_server.api import schemas
from critiq_server.app import App
from critiq_server.assembly import Assembly
from tests.server.api.conftest import Server
from tests.support import requests
from tests.support.bundles import write_bundle
from tests.support.faces import PROTOBUF, Refusal, http_refusal, plain
from tests.support.servers import make_settings

pytestmark = pytest.mark.asyncio(loop_scope="module")

BUILTIN = "critiq-builtin"
"""Every server knows it; the tests' servers do not load it."""


async def listed(server: Server) -> list[types.Model]:
    data = await server.ports.grpc("/critiq.v1.Models/List", b"")
    assert isinstance(data, bytes)
    message = models_pb2.ListModelsResponse()
    message.ParseFromString(data)
    return [wire.model_from_proto(model) for model in message.models if model.name != BUILTIN]


async def test_models_are_described_alike_over_both_faces(server: Server) -> None:
    over_grpc = await listed(server)
    everything = (await server.ports.http.get("/v1/models")).json()["models"]
    over_rest = [model for model in everything if model["name"] != BUILTIN]
    assert [plain(model) for model in over_grpc] == over_rest
    assert [(model.name, model.version, model.state, model.is_default) for model in over_grpc] == [
        ("spare", "1", "available", False),
        ("tiny", "1", "ready", True),
    ]
    spare, tiny = over_grpc
    assert [stage.provider for stage in tiny.stages] == ["CPUExecutionProvider"] * 3
    assert [stage.provider for stage in spare.stages] == [""] * 3
    assert all(re.fullmatch("[0-9a-f]{64}", stage.digest) for stage in tiny.stages)
    assert tiny.dimensions[1].needs_prompt
    assert tiny.dimensions[0].reference_quantiles[50] == pytest.approx(0.5)
    one = (await server.ports.http.get("/v1/models/spare?version=1")).json()
    assert one == plain(spare)
    data = await server.ports.grpc("/critiq.v1.Models/Get", b"")
    assert isinstance(data, bytes)
    assert wire.model_from_proto(models_pb2.Model.FromString(data)) == tiny, "the default model"


async def test_an_unknown_model_lists_the_known_ones(server: Server) -> None:
    asked = models_pb2.GetModelRequest(name="nope").SerializeToString()
    over_grpc = await server.ports.grpc("/critiq.v1.Models/Get", asked)
    over_rest = http_refusal(await server.ports.http.get("/v1/models/nope"))
    assert isinstance(over_grpc, Refusal)
    assert (over_grpc.status, over_rest.status) == ("NOT_FOUND", 404)
    for refusal in (over_grpc, over_rest):
        assert "spare, tiny" in refusal.message


@pytest.mark.parametrize("operation", ["load", "unload"])
async def test_callers_may_not_change_models_unless_the_settings_let_them(server: Server, operation: str) -> None:
    over_grpc = await server.ports.grpc(
        f"/critiq.v1.Models/{operation.title()}", models_pb2.LoadModelRequest(name="spare").SerializeToString()
    )
    over_rest = http_refusal(await server.ports.http.post(f"/v1/models/spare/{operation}"))
    assert isinstance(over_grpc, Refusal)
    assert (over_grpc.status, over_rest.status) == ("PERMISSION_DENIED", 403)
    assert "models.allow_changes" in over_rest.message


async def test_health_of_the_server_and_of_each_model(server: Server) -> None:
    stub = health_pb2_grpc.HealthStub(server.ports.channel)
    for service in ("", "live", "critiq.v1.Scoring", "critiq.v1.Models", "models/tiny", "models/tiny/1"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, service
    refusal = await server.ports.grpc(
        "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(service="models/spare").SerializeToString()
    )
    assert isinstance(refusal, Refusal)
    assert refusal.status == "NOT_FOUND"
    assert (await server.ports.http.get("/healthz")).json() == {"status": "ok"}
    ready = await server.ports.http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"status": "ready"})


async def test_a_server_that_loads_or_stops_is_alive_and_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path)
    app = App(make_settings(tmp_path))
    loading, go_on = asyncio.Event(), asyncio.Event()
    load = Assembly.load

    async def load_when_told(assembly: Assembly, wanted: Sequence[str] = ()) -> None:
        loading.set()
        await go_on.wait()
        await load(assembly, wanted)

    monkeypatch.setattr(Assembly, "load", load_when_told)
    starting = asyncio.create_task(app.start())
    await asyncio.wait_for(loading.wait(), 120)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def healths() -> list[int]:
            asked = [health_pb2.HealthCheckRequest(service=service) for service in ("live", "")]
            return [(await stub.Check(request)).status for request in asked]

        healthy, unhealthy = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        assert await healths() == [healthy, unhealthy]
        go_on.set()
        await starting
        assert await healths() == [healthy, healthy]
        with app.service.admission.admit(1, 1):
            stopping = asyncio.create_task(app.stop(grace=10))
            await asyncio.sleep(0.05)
            assert await healths() == [healthy, unhealthy]
        await stopping


async def test_reflection_knows_the_services_and_their_messages(server: Server) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(server.ports.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="critiq.v1.Scoring"),
    ]
    services, file = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    names = {service.name for service in services.list_services_response.service}
    assert {"critiq.v1.Scoring", "critiq.v1.Models", "grpc.health.v1.Health"} <= names
    described = descriptor_pb2.FileDescriptorProto.FromString(file.file_descriptor_response.file_descriptor_proto[0])
    assert "ScoreRequest" in {message.name for message in described.message_type}


async def test_metrics_after_traffic(server: Server) -> None:
    for picture in (requests.flat(7), requests.flat(7), b"broken"):
        await server.ports.ask("grpc", requests.score(picture, "a cat"))
    await server.ports.ask("json", requests.batch([requests.score(b"broken"), requests.score(requests.flat(8))]))
    await server.ports.ask("json", requests.score(model="no such model"))
    response = await server.ports.http.get(f"http://127.0.0.1:{server.app.metrics_port}/metrics")
    values = {}
    for line in response.text.splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            values[name] = float(value)
    assert values['critiq_requests_total{code="OK",model="tiny",operation="score"}'] == 2
    assert values['critiq_requests_total{code="INVALID_ARGUMENT",model="tiny",operation="score"}'] == 1
    assert values['critiq_requests_total{code="NOT_FOUND",model="unknown",operation="score"}'] == 1
    assert values['critiq_request_seconds_count{operation="score_batch"}'] == 1
    assert values["critiq_image_decode_seconds_count"] == 2
    assert values['critiq_store_lookups_total{outcome="hit",stage="head"}'] == 1
    assert values['critiq_batch_size_count{model="tiny",stage="head"}'] == 1
    assert values['critiq_batch_size_sum{model="tiny",stage="image_encoder"}'] == 2
    assert values["critiq_in_flight"] == 0
    assert values["critiq_in_flight_bytes"] == 0
    assert values["critiq_store_bytes"] > 0
    assert values['critiq_model_ready{model="tiny",version="1"}'] == 1
    for name in ("critiq_queue_seconds", "critiq_compute_seconds", "critiq_dropped_total", "critiq_rejected_total"):
        assert f"# TYPE {name.removesuffix('_total')}" in response.text
    assert "a cat" not in response.text


async def test_pictures_are_counted_whichever_call_brought_them(server: Server) -> None:
    def counted() -> float:
        value = server.app.metrics.registry.get_sample_value("critiq_items_total", {"model": "tiny", "code": "OK"})
        return value or 0.0

    before = counted()
    await server.ports.ask("grpc", requests.score(requests.flat(9)))
    await server.ports.ask("grpc", requests.batch([requests.score(requests.flat(level)) for level in (9, 10)]))
    await server.ports.ask("grpc", requests.rank([requests.flat(9), requests.flat(10)]))
    assert counted() - before == 5


ANSWERS: dict[str, tuple[Any, Any]] = {
    "/v1/score": (requests.score(requests.flat(17), "a cat"), types.ScoreResult),
    "/v1/score/batch": (requests.batch([requests.score(), requests.score(b"x")]), schemas.BatchResultJson),
    "/v1/rank": (requests.rank([requests.flat(), b"x"]), schemas.RankResultJson),
    "/v1/compare": (requests.compare(requests.flat(), requests.flat(3)), types.CompareResult),
}


@pytest.mark.parametrize("path", ANSWERS)
async def test_answers_fit_the_schema_that_the_description_names(server: Server, path: str) -> None:
    request, kind = ANSWERS[path]
    answer = await server.ports.ask("json", request)
    assert not isinstance(answer, Refusal)
    validated = TypeAdapter(kind).validate_python(answer)
    assert TypeAdapter(kind).dump_python(validated, mode="json") == answer, "no field more, no field less"
    document = (await server.ports.http.get("/openapi.json")).json()
    operation = document["paths"][path]["post"]
    reference = operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert reference.endswith(f"/{kind.__name__}")
    assert operation["requestBody"]["content"]["application/json"]["schema"]
    for status in ("400", "404", "413", "429", "503", "504"):
        assert operation["responses"][status]["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorJson")


async def test_every_reference_of_the_description_resolves(server: Server) -> None:
    response = await server.ports.http.get("/openapi.json")
    document = response.json()
    references = set(re.findall(r'"\$ref":\s*"([^"]+)"', response.text))
    assert len(references) > 10
    for reference in references:
        node = document
        for step in reference.removeprefix("#/").split("/"):
            assert step in node, reference
            node = node[step]
    assert (await server.ports.http.get("/docs")).status_code == 200


async def test_refusals_fit_their_schema(server: Server) -> None:
    response = await server.ports.http.post("/v1/score", content=b"{", headers={"content-type": "application/json"})
    assert schemas.ErrorJson.model_validate(response.json()).model_dump() == response.json()


async def test_models_fit_their_schema_and_come_as_protobuf_too(server: Server) -> None:
    as_json = await server.ports.http.get("/v1/models")
    assert schemas.ModelsJson.model_validate(as_json.json()).model_dump(mode="json") == as_json.json()
    response = await server.ports.http.get("/v1/models", headers={"accept": PROTOBUF})
    message = models_pb2.ListModelsResponse.FromString(response.content)
    assert [plain(wire.model_from_proto(model)) for model in message.models] == as_json.json()["models"]
