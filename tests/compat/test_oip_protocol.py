"""The protocol's own forms, its errors, and what bounds the work, without a client library in between."""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from typing import Any

import numpy as np
import pytest

from critiq_server.api.oip.inference import service_pb2
from critiq_server.app import App
from tests.compat.conftest import ITEMS, LIMIT
from tests.compat.oip_bodies import LENGTH, binary, body, packed, pictures
from tests.compat.oip_calls import PICTURE, grpc_refused, refusal
from tests.support.faces import Ports
from tests.support.requests import flat

pytestmark = pytest.mark.asyncio(loop_scope="module")

INFER = "/v2/models/tiny/infer"
TEXT = base64.b64encode(PICTURE).decode()
IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [TEXT]}


async def answered(connected: Ports, path: str = INFER, **options: Any) -> dict[str, Any]:
    response = await connected.http.post(path, **options)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def refused(connected: Ports, path: str = INFER, **options: Any) -> tuple[int, str]:
    response = await connected.http.post(path, **options)
    return refusal(response)


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
