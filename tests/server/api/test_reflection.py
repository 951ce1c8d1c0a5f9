"""What docs/grpcurl.md sends, done as grpcurl does it: with the descriptors of server reflection alone."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from tests.fixtures.images import encoded, photo
from tests.server.api.test_curl import POLICY
from tests.support.servers import ServerProcess, server_process

PAGE = (Path(__file__).parents[3] / "docs" / "grpcurl.md").read_text()
CALLS = re.findall(r"-d @ localhost:8001 (\S+) <<EOF\n(.*?)EOF", PAGE, re.DOTALL)
PICTURES = {f"${name}": base64.b64encode(encoded(photo(seed=at), "PNG")).decode() for at, name in enumerate("AB")}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("grpcurl")
    (folder / "gallery.yaml").write_text(POLICY)
    values = {"moderation.policies": [str(folder / "gallery.yaml")], "jobs.path": str(folder / "jobs.db")}
    arguments = [part for name, value in values.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    with server_process(arguments, folder / "log") as process:
        yield process


@pytest.fixture(scope="module")
def channel(server: ServerProcess) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.grpc) as opened:
        yield opened


def ask(channel: grpc.Channel, **question: str) -> Any:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
    (answer,) = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(**question)]))
    assert not answer.HasField("error_response"), (question, answer.error_response)
    return answer


def services(channel: grpc.Channel) -> set[str]:
    return {entry.name for entry in ask(channel, list_services="").list_services_response.service}


@pytest.fixture(scope="module")
def pool(channel: grpc.Channel) -> descriptor_pool.DescriptorPool:
    """A pool of its own, filled from the server alone: file by file, what a file imports before it."""
    made = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    def add(answer: Any) -> None:
        for data in answer.file_descriptor_response.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            if file.name in added:
                continue
            added.add(file.name)
            for needed in file.dependency:
                add(ask(channel, file_by_filename=needed))
            made.Add(file)

    for service in services(channel):
        add(ask(channel, file_containing_symbol=service))
    return made


def send(channel: grpc.Channel, pool: descriptor_pool.DescriptorPool, name: str, text: str) -> list[Any]:
    service, method = name.split("/")
    found = pool.FindServiceByName(service).methods_by_name[method]
    kinds = [message_factory.GetMessageClass(kind) for kind in (found.input_type, found.output_type)]
    for mark, data in PICTURES.items():
        text = text.replace(mark, data)
    documents = text.strip().splitlines() if found.client_streaming else [text]
    messages = [
        json_format.Parse(document, kinds[0](), descriptor_pool=pool).SerializeToString() for document in documents
    ]
    if found.client_streaming:
        answers = list(channel.stream_stream(f"/{name}")(iter(messages), timeout=60))
    else:
        answers = [channel.unary_unary(f"/{name}")(messages[0], timeout=60)]
    return [json_format.MessageToDict(kinds[1].FromString(answer), descriptor_pool=pool) for answer in answers]


def test_every_service_is_listed(channel: grpc.Channel) -> None:
    assert services(channel) >= {
        "critiq.v1.Scoring",
        "critiq.v1.Models",
        "critiq.v1.Jobs",
        "inference.GRPCInferenceService",
        "grpc.health.v1.Health",
    }


@pytest.mark.parametrize(("name", "text"), CALLS, ids=[name for name, _ in CALLS])
def test_call(channel: grpc.Channel, pool: descriptor_pool.DescriptorPool, name: str, text: str) -> None:
    answers = send(channel, pool, name, text)
    assert len(answers) == (2 if name.endswith("ScoreStream") else 1)
    told = json.dumps(answers)
    assert '"error"' not in told
    expected = {
        "Score": '"percentile"',
        "Rank": "visual_quality percentile",
        "Compare": '"PREFERENCE_',
        "Moderate": '"DECISION_',
        "Get": '"critiq-builtin"',
        "Check": '"SERVING"',
        "ModelMetadata": '"FP32"',
    }.get(name.rpartition("/")[2], "")
    assert expected in told


def test_the_page_has_every_method_that_scores(pool: descriptor_pool.DescriptorPool) -> None:
    shown = {name for name, _ in CALLS}
    methods = pool.FindServiceByName("critiq.v1.Scoring").methods_by_name
    assert {f"critiq.v1.Scoring/{method}" for method in methods} <= shown
