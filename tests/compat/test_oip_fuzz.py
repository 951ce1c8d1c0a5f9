"""Whatever bytes come in the protocol's binary forms: an answer or a refusal in its words, and the server lives."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from critiq_server.api.oip.inference import service_pb2
from tests.compat.oip_bodies import LENGTH, packed, pictures
from tests.support.requests import flat
from tests.support.servers import ServerProcess

METHOD = "/inference.GRPCInferenceService/ModelInfer"
SECONDS = 60
PICTURE = flat(51)
relaxed = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)

names = st.sampled_from(["image", "pixels", "prompt", "nothing", ""])
datatypes = st.sampled_from(["BYTES", "UINT8", "FP32", ""])
lengths = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**63 - 1, -(2**63)]))
shapes = st.lists(lengths, max_size=5)
elements = st.one_of(st.sampled_from([PICTURE, PICTURE[:60], b"a dog"]), st.binary(max_size=40))
blobs = st.one_of(
    st.binary(max_size=60),
    st.lists(elements, max_size=4).map(lambda found: packed(*found)),
    st.builds(lambda length, data: struct.pack("<I", length) + data, st.integers(0, 2**32 - 1), st.binary(max_size=20)),
    st.sampled_from([bytes(16 * 16 * 3), bytes(2 * 16 * 16 * 3)]),
)
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
parameters = st.dictionaries(
    st.sampled_from(
        ["scale", "on_error", "accept_degraded", "priority", "timeout", "binary_data_output", "binary_data_size", "x"]
    ),
    st.one_of(st.sampled_from(["raw", "calibrated", "percentile", "nan", "fail", True, False, 0, 1, 1000]), scalars),
    max_size=3,
)


@pytest.fixture(scope="module")
def http(fuzzed: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=fuzzed.rest, timeout=SECONDS, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def infer(fuzzed: ServerProcess) -> Iterator[Any]:
    with grpc.insecure_channel(fuzzed.grpc) as channel:
        yield channel.unary_unary(METHOD)


def check(response: httpx.Response) -> None:
    assert response.status_code in (200, 400, 404, 409, 413, 429, 504), response.text
    if response.status_code == 200:
        length = int(response.headers.get(LENGTH, len(response.content)))
        assert json.loads(response.content[:length])["outputs"]
    else:
        assert list(response.json()) == ["error"]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, str]:
    """A body whose parts are each often right and sometimes not, and the header that says where its JSON ends."""
    inputs: list[dict[str, Any]] = []
    data = b""
    for _ in range(draw(st.integers(0, 3))):
        blob = draw(blobs)
        entry: dict[str, Any] = {"name": draw(names), "shape": draw(shapes), "datatype": draw(datatypes)}
        if draw(st.booleans()):
            entry["parameters"] = {"binary_data_size": draw(st.one_of(st.just(len(blob)), st.integers(-1, 2**40)))}
            data += blob
        else:
            entry["data"] = draw(values)
        inputs.append(entry)
    outputs = [{"name": name} for name in draw(st.lists(st.sampled_from(["brightness", "wordiness", "x"]), max_size=3))]
    head = json.dumps({"inputs": inputs, "outputs": outputs, "parameters": draw(parameters)}).encode()
    length = draw(st.one_of(st.just(len(head)), st.integers(0, len(head) + len(data) + 1)))
    return head + data, str(length)


@relaxed
@given(body=bodies(), stage=st.sampled_from(["", "/image_encoder", "/text_encoder", "/head", "/x"]))
def test_rest_bodies_made_of_parts(http: httpx.Client, body: tuple[bytes, str], stage: str) -> None:
    content, length = body
    check(http.post(f"/v2/models/tiny{stage}/infer", content=content, headers={LENGTH: length}))


@relaxed
@given(data=st.data())
def test_rest_bodies_with_bytes_changed(http: httpx.Client, data: st.DataObject) -> None:
    right = pictures(PICTURE, flat(102), prompts=["a dog", "a cat"], parameters={"binary_data_output": True})
    content = bytearray(right["content"])
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))
    check(http.post("/v2/models/tiny/infer", content=bytes(content[:cut]), headers=right["headers"]))


@relaxed
@given(content=st.binary(max_size=200), length=st.one_of(st.none(), st.text("0123456789-+.x", max_size=6)))
def test_rest_bodies_of_any_bytes(http: httpx.Client, content: bytes, length: str | None) -> None:
    check(http.post("/v2/models/tiny/infer", content=content, headers={} if length is None else {LENGTH: length}))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    request = service_pb2.ModelInferRequest(model_name=draw(st.sampled_from(["tiny", "", "tiny/head", "x/y/z", "/"])))
    for _ in range(draw(st.integers(0, 3))):
        entry = request.inputs.add(name=draw(names), datatype=draw(datatypes), shape=draw(shapes))
        if draw(st.booleans()):
            entry.contents.bytes_contents.extend(draw(st.lists(elements, max_size=3)))
            entry.contents.uint_contents.extend(draw(st.lists(st.integers(0, 300), max_size=8)))
    if draw(st.booleans()):
        request.raw_input_contents.extend(draw(st.lists(blobs, min_size=len(request.inputs), max_size=3)))
    for name in draw(st.lists(st.sampled_from(["brightness", "wordiness", "x"]), max_size=3)):
        request.outputs.add(name=name)
    for name, value in draw(parameters).items():
        if isinstance(value, bool):
            request.parameters[name].bool_param = value
        elif isinstance(value, int) and abs(value) < 2**63:
            request.parameters[name].int64_param = value
        elif isinstance(value, float):
            request.parameters[name].double_param = value
        elif isinstance(value, str):
            request.parameters[name].string_param = value.encode(errors="replace").decode()
    return request.SerializeToString()


def check_call(infer: Any, data: bytes) -> None:
    call = infer.future(data, timeout=SECONDS)
    if call.code() is grpc.StatusCode.OK:
        answer = service_pb2.ModelInferResponse.FromString(call.result())
        assert len(answer.raw_output_contents) == len(answer.outputs) > 0
    else:
        allowed = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DEADLINE_EXCEEDED)
        assert call.code() in allowed, (call.code(), call.details())
        assert "Deadline Exceeded" not in call.details(), "the client gave up"


@relaxed
@given(data=messages())
def test_grpc_messages_made_of_parts(infer: Any, data: bytes) -> None:
    check_call(infer, data)


@relaxed
@given(data=st.data())
def test_grpc_messages_with_bytes_changed(infer: Any, data: st.DataObject) -> None:
    request = service_pb2.ModelInferRequest(model_name="tiny", raw_input_contents=[packed(PICTURE), packed(b"a dog")])
    request.inputs.add(name="image", datatype="BYTES", shape=[1])
    request.inputs.add(name="prompt", datatype="BYTES", shape=[1])
    content = bytearray(request.SerializeToString())
    for _ in range(data.draw(st.integers(0, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    check_call(infer, bytes(content))


def test_a_server_that_met_all_that_still_answers(http: httpx.Client) -> None:
    with ThreadPoolExecutor(8) as threads:
        asked = [threads.submit(http.post, "/v2/models/tiny/infer", **pictures(flat(level))) for level in range(8)]
    found = [entry.result().json()["outputs"][0]["data"][0] for entry in asked]
    assert found == pytest.approx([level / 255 for level in range(8)], abs=1e-6)
