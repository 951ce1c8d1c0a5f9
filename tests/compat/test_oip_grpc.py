"""The protocol over gRPC, without a client library in between: its typed contents, its errors, its description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tritonclient.grpc import model_config_pb2
from tritonclient.grpc import service_pb2 as published

from critiq_server.api.oip.inference import service_pb2
from tests.compat.oip_bodies import packed
from tests.compat.oip_calls import PICTURE, grpc_answered, grpc_refused
from tests.support.faces import Ports

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
