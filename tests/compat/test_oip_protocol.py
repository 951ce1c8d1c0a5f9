"""The protocol's own forms, its errors, and what bounds the work, without a client library in between."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as published

from critiq_server.api.oip.inference import service_pb2
from critiq_server.app import App
from tests.compat.oip_bodies import LENGTH, binary, body, packed, pictures
from tests.server.api.test_overload import holding
from tests.support.bundles import write_bundle, write_simulated
from tests.support.faces import Ports, ports
from tests.support.gates import held
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICE = "/inference.GRPCInferenceService/"
INFER = "/v2/models/tiny/infer"
LIMIT = 2**20
ITEMS = 8
PICTURE = flat(51)
TEXT = base64.b64encode(PICTURE).decode()
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    write_bundle(root, name="spare")
    async with running(make_settings(root, limits={"batch_items": ITEMS, "request_bytes": LIMIT})) as app:
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def connected(app: App) -> AsyncIterator[Ports]:
    async with ports(app) as connected:
        yield connected


async def answered(connected: Ports, path: str = INFER, **options: Any) -> dict[str, Any]:
    response = await connected.http.post(path, **options)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def refused(connected: Ports, path: str = INFER, **options: Any) -> tuple[int, str]:
    response = await connected.http.post(path, **options)
    return refusal(response)


def refusal(response: httpx.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/json"
    found = response.json()
    assert set(found) == {"error"}
    assert "Traceback" not in found["error"]
    return response.status_code, found["error"]


async def test_json_alone(connected: Ports) -> None:
    prompt = {"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a 猫 dog"]}
    assert await answered(connected, json={"id": "x", "inputs": [IMAGE, prompt]}) == {
        "model_name": "tiny",
        "model_version": "1",
        "id": "x",
        "outputs": [
            {"name": "brightness", "datatype": "FP32", "shape": [1], "data": [pytest.approx(0.2)]},
            {"name": "wordiness", "datatype": "FP32", "shape": [1], "data": [pytest.approx(1.0)]},
        ],
    }


@pytest.mark.parametrize("nested", [True, False])
async def test_pixels_as_json(connected: Ports, nested: bool) -> None:
    values = np.full((2, 16, 20, 3), 102, np.uint8)
    data = values.tolist() if nested else values.reshape(-1).tolist()
    pixels = {"name": "pixels", "datatype": "UINT8", "shape": [2, 16, 20, 3], "data": data}
    answer = await answered(connected, json={"inputs": [pixels]})
    assert answer["outputs"][0]["data"] == pytest.approx([0.4, 0.4])


async def test_binary_outputs(connected: Ports) -> None:
    asked = pictures(flat(51), flat(102), prompts=["a dog"], parameters={"binary_data_output": True})
    response = await connected.http.post(INFER, **asked)
    assert response.status_code == 200, response.text
    length = int(response.headers[LENGTH])
    head, data = json.loads(response.content[:length]), response.content[length:]
    assert [entry["parameters"]["binary_data_size"] for entry in head["outputs"]] == [8, 8]
    assert np.frombuffer(data, "<f4") == pytest.approx([0.2, 0.4, 0.8, 1.6])


async def test_an_output_has_its_own_say_over_its_form(connected: Ports) -> None:
    outputs = [{"name": "wordiness"}, {"name": "brightness", "parameters": {"binary_data": False}}]
    asked = pictures(PICTURE, prompts=["a"], parameters={"binary_data_output": True}, outputs=outputs)
    response = await connected.http.post(INFER, **asked)
    head = json.loads(response.content[: int(response.headers[LENGTH])])
    assert [entry["name"] for entry in head["outputs"]] == ["wordiness", "brightness"]
    assert ["data" in entry for entry in head["outputs"]] == [False, True]


async def test_versions_and_stages_in_the_path(connected: Ports) -> None:
    for path in (
        "/v2/models/tiny/versions/1/infer",
        "/v2/models/tiny/image_encoder/infer",
        "/v2/models/tiny%2Fimage_encoder/versions/1/infer",
    ):
        answer = await answered(connected, path, json={"inputs": [IMAGE]})
        assert answer["outputs"][0]["data"] == pytest.approx([0.2])
        assert answer["model_name"] == ("tiny" if path.count("tiny/versions") else "tiny/image_encoder")


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/health/live", 200),
        ("/v2/health/ready", 200),
        ("/v2/models/tiny/ready", 200),
        ("/v2/models/tiny/versions/1/ready", 200),
        ("/v2/models/spare/ready", 503),
        ("/v2/models/nothing/ready", 404),
        ("/v2/models/tiny/nothing/ready", 404),
        ("/v2/models/tiny/versions/9", 404),
        ("/v2/models/spare/head", 503),
        ("/v2/nothing", 404),
        ("/v2/models/tiny/infer", 404),  # read as a stage called infer: there is none
    ],
)
async def test_statuses(connected: Ports, path: str, status: int) -> None:
    response = await connected.http.get(path)
    assert response.status_code == status, response.text
    if status != 200:
        refusal(response)


async def test_another_method(connected: Ports) -> None:
    assert refusal(await connected.http.post("/v2/health/live"))[0] == 405


async def test_the_repository_tells_only_what_is_ready_if_asked(connected: Ports) -> None:
    response = await connected.http.post("/v2/repository/index", json={"ready": True})
    assert [(entry["name"], entry["state"]) for entry in response.json()] == [("tiny", "READY")]


async def test_changes_need_the_operators_leave(connected: Ports) -> None:
    status, message = await refused(connected, "/v2/repository/models/spare/load")
    assert (status, "models.allow_changes" in message) == (403, True)


TWO = {"shape": [2], "data": [TEXT, TEXT]}


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "inputs: Field required"),
        ({"inputs": []}, "inputs: "),
        ({"inputs": [IMAGE], "model": "tiny"}, "model: Extra inputs"),
        ({"inputs": [IMAGE | {"name": "picture"}]}, "there is no input 'picture' here; there is image, pixels, prompt"),
        ({"inputs": [IMAGE, IMAGE]}, "'image' is there twice"),
        ({"inputs": [IMAGE | {"datatype": "UINT8"}]}, "image.datatype: the datatype is 'UINT8'; it must be BYTES"),
        ({"inputs": [IMAGE | {"shape": [1, 1]}]}, "image.shape: the shape [1, 1] must be [N]"),
        ({"inputs": [IMAGE | {"shape": [2]}]}, "image: there are 1 elements; the shape says 2"),
        ({"inputs": [IMAGE | {"shape": [-1]}]}, "image.shape: the shape [-1] must be [N]"),
        ({"inputs": [IMAGE | {"shape": ["1"]}]}, "inputs[0].shape[0]: "),
        ({"inputs": [IMAGE | {"shape": [0], "data": []}]}, "image: there is nothing in it"),
        ({"inputs": [IMAGE | {"data": [7]}]}, "image[0]: the element is a int, not text"),
        ({"inputs": [IMAGE | {"data": ["no base64!"]}]}, "image[0]: it is not base64"),
        ({"inputs": [IMAGE | {"data": None}]}, "inputs[0]: it has neither data nor"),
        ({"inputs": [IMAGE | {"parameters": {"shared_memory_region": "a"}}]}, "'shared_memory_region' is unknown"),
        ({"inputs": [IMAGE | {"parameters": {"binary_data_size": 1}}]}, "inputs[0]: it has data as well as"),
        ({"inputs": [{"name": "prompt", "datatype": "BYTES", "shape": [1], "data": ["a"]}]}, "there is no picture"),
        (
            {"inputs": [IMAGE, {"name": "prompt", "datatype": "BYTES", "shape": [2], "data": ["a", "b"]}]},
            "prompt: there are 1 pictures and 2 prompts",
        ),
        (
            {"inputs": [IMAGE, {"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 3]}]},
            "as image (files) or as pixels, not as both",
        ),
        (
            {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [1, 2, 256]}]},
            "pixels: values must be whole numbers in 0..255",
        ),
        (
            {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 16, 16, 3], "data": [1, 2, 3]}]},
            "pixels: there are 3 values; the shape [1, 16, 16, 3] needs 768",
        ),
        (
            {"inputs": [{"name": "pixels", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [9] * 12}]},
            "pixels[0]: the picture has 2 x 2 pixels",
        ),
        ({"inputs": [IMAGE], "outputs": [{"name": "beauty"}]}, "outputs[0]: 'tiny' has no output 'beauty'"),
        ({"inputs": [IMAGE], "outputs": [{"name": "brightness"}] * 2}, "outputs[1]: 'brightness' is asked for twice"),
        (
            {"inputs": [IMAGE], "outputs": [{"name": "wordiness"}]},
            "prompt[0]: the dimension 'wordiness' needs the prompt",
        ),
        (
            {"inputs": [IMAGE], "outputs": [{"name": "brightness", "parameters": {"classification": 3}}]},
            "outputs[0].parameters: the parameter 'classification' is unknown",
        ),
        (
            {"inputs": [IMAGE], "outputs": [{"name": "brightness", "parameters": {"binary_data": 1}}]},
            "outputs[0].parameters.binary_data: '1' is not true or false",
        ),
        ({"inputs": [IMAGE], "parameters": {"sequence_id": 3}}, "the parameter 'sequence_id' is unknown"),
        ({"inputs": [IMAGE], "parameters": {"scale": "stars"}}, "parameters.scale: 'stars' is no scale"),
        ({"inputs": [IMAGE], "parameters": {"scale": ["raw"]}}, "parameters.scale: ['raw'] is no scale"),
        ({"inputs": [IMAGE], "parameters": {"on_error": 1}}, "parameters.on_error: 1 is unknown"),
        ({"inputs": [IMAGE], "parameters": {"timeout": -1}}, "parameters.timeout: -1 is not a whole number"),
        ({"inputs": [IMAGE], "parameters": {"priority": True}}, "parameters.priority: True is not a whole number"),
        ({"inputs": [IMAGE], "parameters": {"accept_degraded": "yes"}}, "parameters.accept_degraded: "),
    ],
)
async def test_what_cannot_be_read(connected: Ports, asked: dict[str, Any], words: str) -> None:
    status, message = await refused(connected, json=asked)
    assert status == (404 if "no output" in words else 400)
    assert words in message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (body([binary("image", b"", [1])]), "the data ends after 0 of 1 elements"),
        (body([binary("image", packed(PICTURE), [2])], packed(PICTURE)), "the data ends after 1 of 2 elements"),
        (body([binary("image", packed(b"a", b"b"), [1])], packed(b"a", b"b")), "5 bytes are left after 1 elements"),
        (body([binary("image", b"\xff\xff\xff\xff", [1])], b"\xff\xff\xff\xff"), "4,294,967,295 bytes; 0 are left"),
        (body([binary("image", packed(b"a"), [1])]), "binary_data_size is '5'; 0 bytes are left"),
        (body([IMAGE], b"abc"), "3 bytes after the JSON belong to no input"),
        (body([binary("image", b"a", [1], parameters={"binary_data_size": -1})], b"a"), "binary_data_size is '-1'"),
        (body([binary("image", b"a", [1], parameters={"binary_data_size": True})], b"a"), "binary_data_size is 'True'"),
        (body([binary("pixels", b"abc", [1, 1, 1], "UINT8")], b"abc"), "must be [N, height, width, 3]"),
        (body([binary("pixels", b"", [2**62, 2**62, 2, 3], "UINT8")]), "the limit is 8"),
        (body([binary("pixels", b"", [1, 2**62, 2**62, 3], "UINT8")]), "there are 0 values"),
        ({"content": b"{}", "headers": {LENGTH: "3"}}, "is not a number of bytes within the body"),
        ({"content": b"{}", "headers": {LENGTH: "-1"}}, "is not a number of bytes within the body"),
        ({"content": b"{}", "headers": {LENGTH: "1"}}, "JSON"),
        ({"content": b""}, "JSON"),
        ({"content": b"[" * 100_000}, "JSON"),
        ({"content": b'{"inputs": "\xff"}'}, "JSON"),
    ],
)
async def test_binary_bodies_that_do_not_fit(connected: Ports, options: dict[str, Any], words: str) -> None:
    status, message = await refused(connected, **options)
    assert status in (400, 413)
    assert words in message


async def test_a_prompt_that_is_not_utf8(connected: Ports) -> None:
    blobs = [packed(PICTURE, PICTURE), packed(b"a dog", b"caf\xe9")]
    inputs = [binary("image", blobs[0], [2]), binary("prompt", blobs[1], [2])]
    status, message = await refused(connected, **body(inputs, *blobs))
    assert (status, message) == (400, "prompt[1]: it is not UTF-8 text (byte 0xe9 at 3)")


async def test_one_bad_picture_fails_the_request_by_name(connected: Ports) -> None:
    status, message = await refused(connected, **pictures(PICTURE, b"broken", PICTURE, b""))
    assert status == 400
    assert message.startswith("image[1]: ")
    assert message.endswith("(2 of 4 items failed)")


async def test_or_leaves_its_place_empty(connected: Ports) -> None:
    asked = pictures(PICTURE, b"broken", flat(102), prompts=["a"] * 3, parameters={"on_error": "nan"})
    answer = await answered(connected, **asked)
    assert [entry["data"] for entry in answer["outputs"]] == [
        [pytest.approx(0.2), None, pytest.approx(0.4)],
        [pytest.approx(0.6), None, pytest.approx(1.2)],
    ]
    errors = json.loads(answer["parameters"]["errors"])
    assert list(errors) == ["1"]
    assert errors["1"].startswith("image[1]: ")


async def test_but_not_where_no_item_could_be_answered(connected: Ports) -> None:
    asked = pictures(PICTURE, parameters={"on_error": "nan"})
    for path in ("/v2/models/spare/infer", "/v2/models/spare/head/infer"):
        status, message = await refused(connected, path, **asked)
        assert (status, message.startswith("model: model 'spare'")) == (503, True)


async def test_a_stage_too(connected: Ports) -> None:
    asked = pictures(b"broken", PICTURE, parameters={"on_error": "nan"})
    answer = await answered(connected, "/v2/models/tiny/image_encoder/infer", **asked)
    assert answer["outputs"][0]["data"] == [None, pytest.approx(0.2)]


@pytest.mark.parametrize(
    ("stage", "asked", "words"),
    [
        ("nothing", pictures(PICTURE), "model 'tiny' has no stage 'nothing'; it has image_encoder, text_encoder, head"),
        ("text_encoder", pictures(PICTURE), "there is no input 'image' here; there is prompt"),
        ("image_encoder", pictures(PICTURE, prompts=["a"]), "there is no input 'prompt' here; there is image, pixels"),
        ("image_encoder", pictures(PICTURE, parameters={"scale": "raw"}), "scale and accept_degraded are for models"),
        (
            "image_encoder",
            pictures(PICTURE, outputs=[{"name": "beauty"}]),
            "'tiny/image_encoder' has no output 'beauty'",
        ),
    ],
)
async def test_what_a_stage_refuses(connected: Ports, stage: str, asked: dict[str, Any], words: str) -> None:
    status, message = await refused(connected, f"/v2/models/tiny/{stage}/infer", **asked)
    assert status in (400, 404)
    assert words in message


@pytest.mark.parametrize("limit", ["items", "bytes"])
async def test_too_much_at_once(app: App, connected: Ports, limit: str) -> None:
    files = [PICTURE] * (ITEMS + 1) if limit == "items" else [bytes(LIMIT)]
    status, message = await refused(connected, **pictures(*files))
    assert (status, "the limit is" in message) == (413, True)
    request = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[packed(*files)])
    request.inputs.add(name="image", datatype="BYTES", shape=[len(files)])
    code, details = await grpc_refused(connected, request)
    assert (code, "the limit is" in details) == ("INVALID_ARGUMENT", True)
    assert app.service.admission.items == 0


async def test_a_body_that_unpacks_to_too_much(connected: Ports) -> None:
    packed_up = {"content": gzip.compress(bytes(LIMIT + 1)), "headers": {"content-encoding": "gzip"}}
    assert (await refused(connected, **packed_up))[0] == 413


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", b"no gzip"),
        ("deflate", b""),
        ("gzip", gzip.compress(b"{}", mtime=0)[:-4]),
        ("gzip", gzip.compress(b"{}", mtime=0) * 2),
        ("br", b"x"),
        ("gzip", zlib.compress(b"{}") + b"more"),
    ],
)
async def test_bodies_that_do_not_unpack(connected: Ports, encoding: str, content: bytes) -> None:
    status, message = await refused(connected, content=content, headers={"content-encoding": encoding})
    assert status == 400
    assert message.startswith("Content-Encoding: ")


async def grpc_answered(connected: Ports, request: Any, method: str = "ModelInfer") -> Any:
    data = await connected.channel.unary_unary(SERVICE + method)(request.SerializeToString(), timeout=30)
    return service_pb2.ModelInferResponse.FromString(data)


async def grpc_refused(connected: Ports, request: Any, method: str = "ModelInfer") -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await connected.channel.unary_unary(SERVICE + method)(request.SerializeToString(), timeout=30)
    return caught.value.code().name, caught.value.details() or ""


def typed() -> Any:
    request = service_pb2.ModelInferRequest(model_name="tiny", id="7")
    request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(PICTURE)
    request.inputs.add(name="prompt", datatype="BYTES", shape=[1]).contents.bytes_contents.append(b"a dog")
    return request


async def test_typed_contents(connected: Ports) -> None:
    answer = await grpc_answered(connected, typed())
    assert [np.frombuffer(data, "<f4")[0] for data in answer.raw_output_contents] == pytest.approx([0.2, 0.8])
    request = service_pb2.ModelInferRequest(model_name="tiny")
    values = request.inputs.add(name="pixels", datatype="UINT8", shape=[1, 16, 16, 3]).contents
    values.uint_contents.extend([102] * 768)
    answer = await grpc_answered(connected, request)
    assert np.frombuffer(answer.raw_output_contents[0], "<f4") == pytest.approx([0.4])


def changed(**fields: Any) -> Any:
    request = typed()
    for name, value in fields.items():
        if name == "raw":
            request.raw_input_contents.extend(value)
        elif name == "parameter":
            request.parameters[value]
        elif name == "of_input":
            request.inputs[0].parameters[value].bool_param = True
        elif name == "of_output":
            request.outputs.add(name="brightness").parameters[value].int64_param = 3
        else:
            setattr(request, name, value)
    return request


@pytest.mark.parametrize(
    ("request_", "code", "words"),
    [
        (changed(raw=[b""]), "INVALID_ARGUMENT", "2 inputs and 1 raw_input_contents"),
        (changed(raw=[packed(PICTURE), b""]), "INVALID_ARGUMENT", "contents as well as raw_input_contents"),
        (changed(parameter="scale"), "INVALID_ARGUMENT", "the parameter 'scale' has no value"),
        (changed(of_input="shared_memory_region"), "INVALID_ARGUMENT", "inputs[0].parameters: "),
        (changed(of_output="classification"), "INVALID_ARGUMENT", "outputs[0].parameters: "),
        (changed(model_name="nothing"), "NOT_FOUND", "there is no model 'nothing'"),
        (changed(model_name="spare"), "UNAVAILABLE", "not loaded"),
        (changed(model_version="9"), "NOT_FOUND", "no version '9'"),
    ],
)
async def test_what_grpc_refuses(connected: Ports, request_: Any, code: str, words: str) -> None:
    found, details = await grpc_refused(connected, request_)
    assert found == code
    assert words in details


async def test_requests_of_both_faces_share_batches_and_limits(tmp_path: Path) -> None:
    """One picture holds the device; the others wait together, and one more is refused with a hint when to come back."""
    async with holding(tmp_path, in_flight=4, batch_items=4) as slow:
        first = await slow.blocked()
        path = "/v2/models/simulated/infer"
        waiting = [asyncio.ensure_future(slow.ports.http.post(path, **pictures(flat(level)))) for level in (2, 3)]
        request = service_pb2.ModelInferRequest(model_name="simulated/device")
        request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(flat(4))
        waiting_stage = asyncio.ensure_future(grpc_answered(slow.ports, request))
        await until(lambda: slow.accepted == 4 and slow.gate.batcher.waiting == 3)
        response = await slow.ports.http.post(path, **pictures(flat(9)))
        status, message = refusal(response)
        assert (status, "try again later" in message) == (429, True)
        assert int(response.headers["retry-after"]) >= 1
        assert (await grpc_refused(slow.ports, request))[0] == "RESOURCE_EXHAUSTED"
        slow.gate.release()
        await first
        assert [(await entry).json()["outputs"][0]["data"] for entry in waiting] == [[2.0], [3.0]]
        assert np.frombuffer((await waiting_stage).raw_output_contents[0], "<f4") == [4.0]


async def test_concurrent_requests_for_one_picture_each_become_batches(tmp_path: Path) -> None:
    """While the device is busy with one, 64 more come over both faces: they are computed in two batches of 32."""
    write_simulated(tmp_path, batch_ms=1.0, max_batch=32)
    settings = make_settings(tmp_path, default="simulated")
    async with running(settings) as app, ports(app) as connected:
        with held(app, "device") as gate:
            first = asyncio.ensure_future(connected.http.post("/v2/models/simulated/infer", **pictures(flat(100))))
            await until(lambda: gate.computed == 1)
            over_http = [
                asyncio.ensure_future(connected.http.post("/v2/models/simulated/infer", **pictures(flat(level))))
                for level in range(32)
            ]
            over_grpc = []
            for level in range(32, 64):
                request = service_pb2.ModelInferRequest(model_name="simulated")
                request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
                    flat(level)
                )
                over_grpc.append(asyncio.ensure_future(grpc_answered(connected, request)))
            await until(lambda: gate.batcher.waiting == 64)
        found = [(await answer).json()["outputs"][0]["data"][0] for answer in over_http]
        found += [np.frombuffer((await answer).raw_output_contents[0], "<f4")[0] for answer in over_grpc]
        assert found == list(range(64))
        assert (await first).status_code == 200
        batches = app.metrics.registry.get_sample_value(
            "critiq_batch_size_count", {"model": "simulated", "stage": "device"}
        )
        assert batches == 3


async def test_nothing_is_computed_for_callers_that_leave(tmp_path: Path) -> None:
    async with holding(tmp_path) as slow:
        first = await slow.blocked()
        posted = asyncio.ensure_future(slow.ports.http.post("/v2/models/simulated/infer", **pictures(flat(2))))
        request = service_pb2.ModelInferRequest(model_name="simulated")
        request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(flat(3))
        called = slow.ports.channel.unary_unary(SERVICE + "ModelInfer")(request.SerializeToString())
        stream = slow.ports.channel.stream_stream(SERVICE + "ModelStreamInfer")()
        for level in (4, 5):
            request.inputs[0].contents.bytes_contents[0] = flat(level)
            await stream.write(request.SerializeToString())
        reading = asyncio.ensure_future(stream.read())
        await slow.waiting(5)
        posted.cancel()
        called.cancel()
        stream.cancel()
        await until(lambda: slow.accepted == 1)
        slow.gate.release()
        await first
        await asyncio.gather(posted, called, reading, return_exceptions=True)
        assert slow.gate.computed == 1


@pytest.mark.parametrize("parameters", [{"timeout": 50_000}, {"timeout": 50_000, "on_error": "nan"}])
async def test_a_timeout_in_microseconds(tmp_path: Path, parameters: dict[str, Any]) -> None:
    async with holding(tmp_path) as slow:
        await slow.blocked()
        asked = pictures(flat(2), parameters=parameters)
        response = await slow.ports.http.post("/v2/models/simulated/infer", **asked)
        if "on_error" in parameters:
            assert "no answer within 0.05 s" in response.json()["parameters"]["errors"]
        else:
            assert refusal(response) == (
                504,
                "image[0]: no answer within 0.05 s; allow more time, or send less work at once",
            )


async def test_bulk_requests_wait_for_interactive_ones(tmp_path: Path) -> None:
    async with holding(tmp_path) as slow:
        first = await slow.blocked()
        path = "/v2/models/simulated/infer"
        order: list[int] = []

        async def ask(level: int, priority: int) -> None:
            response = await slow.ports.http.post(path, **pictures(flat(level), parameters={"priority": priority}))
            assert response.status_code == 200
            order.append(level)

        bulk = asyncio.ensure_future(ask(2, 2))
        await slow.waiting(2)
        urgent = asyncio.ensure_future(ask(3, 1))
        await slow.waiting(3)
        slow.gate.let_go(2)
        await asyncio.wait_for(urgent, 20)
        slow.gate.release()
        await asyncio.gather(first, bulk)
        assert order == [3, 2]


async def test_messages_are_the_published_ones() -> None:
    """Every message, field and number of ours is in the files that NVIDIA's client carries."""
    ours, theirs = FileDescriptorProto(), [FileDescriptorProto(), FileDescriptorProto()]
    service_pb2.DESCRIPTOR.CopyToProto(ours)
    published.DESCRIPTOR.CopyToProto(theirs[0])
    model_config_pb2.DESCRIPTOR.CopyToProto(theirs[1])
    known = {message.name: message for file in theirs for message in file.message_type}
    assert ours.package == theirs[0].package == "inference"
    for message in ours.message_type:
        assert_same(message, known[message.name])
    methods = {method.name: method for method in theirs[0].service[0].method}
    assert ours.service[0].name == theirs[0].service[0].name
    for method in ours.service[0].method:
        other = methods[method.name]
        assert (method.input_type, method.output_type) == (other.input_type, other.output_type)
        assert method.client_streaming == other.client_streaming
        assert method.server_streaming == other.server_streaming
    (enum,) = ours.enum_type
    (other,) = (entry for file in theirs for entry in file.enum_type if entry.name == enum.name)
    assert {(value.name, value.number) for value in enum.value} == {(value.name, value.number) for value in other.value}


def assert_same(ours: Any, theirs: Any) -> None:
    fields = {field.name: field for field in theirs.field}
    for field in ours.field:
        other = fields[field.name]
        assert (field.number, field.type, field.label, field.type_name) == (
            other.number,
            other.type,
            other.label,
            other.type_name,
        ), field.name
    nested = {message.name: message for message in theirs.nested_type}
    for message in ours.nested_type:
        assert_same(message, nested[message.name])


async def test_reflection_describes_the_service(connected: Ports) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(connected.channel)
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="critiq.v1.Scoring"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="nothing.Nothing"),
    ]
    services, inference, scoring, nothing = [entry async for entry in stub.ServerReflectionInfo(iter(asked))]
    assert "inference.GRPCInferenceService" in {entry.name for entry in services.list_services_response.service}
    file = FileDescriptorProto.FromString(inference.file_descriptor_response.file_descriptor_proto[0])
    assert file.service[0].name == "GRPCInferenceService"
    assert scoring.HasField("file_descriptor_response")
    assert nothing.HasField("error_response")
