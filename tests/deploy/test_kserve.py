"""critiq as a runtime of KServe: the files are valid, the container serves what they say, the example is answered."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import grpc
import httpx
import pytest

from critiq_server.api.oip.inference import service_pb2 as oip
from tests.deploy.charts import arguments_of
from tests.deploy.kubernetes import Object, as_pod, read, validate
from tests.support.bundles import write_bundle
from tests.support.servers import ServerProcess, server_process

FOLDER = Path(__file__).parents[2] / "deploy" / "kserve"
REQUEST = json.loads((FOLDER / "request.json").read_text())


@pytest.fixture(scope="module")
def runtime() -> Object:
    (document,) = read((FOLDER / "runtime.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def services() -> list[Object]:
    files = sorted(FOLDER.glob("inferenceservice*.yaml"))
    assert len(files) == 2
    return [document for file in files for document in read(file.read_text())]


def arguments(runtime: Object, name: str, models: Path) -> list[str]:
    """What the container is started with for an InferenceService of this name; its ports are the test's."""
    given = [argument.replace("{{.Name}}", name) for argument in arguments_of(runtime["spec"]["containers"][0])]
    given = [argument.replace("/mnt/models", str(models)) for argument in given]
    ports = {"--rest-port=8080", "--grpc-port=9000", "--metrics-port=8082"}
    assert ports <= set(given)
    return [argument for argument in given if argument not in ports and not argument.startswith("--host")]


def test_the_files_are_valid(runtime: Object, services: list[Object]) -> None:
    for document in (runtime, *services):
        validate(document)
    # Without a namespace there is a runtime of the same form.
    validate(as_pod({name: runtime["spec"][name] for name in ("containers", "volumes")}))
    formats = {entry["name"] for entry in runtime["spec"]["supportedModelFormats"]}
    for service in services:
        model = service["spec"]["predictor"]["model"]
        assert model["modelFormat"]["name"] in formats
        assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
        for port in model.get("ports", []):
            assert f"--grpc-port={port['containerPort']}" in runtime["spec"]["containers"][0]["args"]


def test_the_example_is_answered_over_rest_and_grpc(runtime: Object, services: list[Object], tmp_path: Path) -> None:
    (name,) = {service["metadata"]["name"] for service in services}
    with server_process(arguments(runtime, name, tmp_path / "nothing"), tmp_path / "log") as server:
        probes = runtime["spec"]["containers"][0]
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert httpx.get(server.rest + probes[probe]["httpGet"]["path"]).status_code == 200
        answer = httpx.post(f"{server.rest}/v2/models/{name}/infer", json=REQUEST, timeout=120)
        assert answer.status_code == 200, answer.text
        rest = {output["name"]: output["data"] for output in answer.json()["outputs"]}
        assert set(rest) >= {"visual_quality", "alignment"}
        assert all(0 <= value <= 1 for (value,) in rest.values())
        assert over_grpc(server, name) == pytest.approx({entry: value for entry, (value,) in rest.items()}, abs=1e-6)


def over_grpc(server: ServerProcess, name: str) -> dict[str, float]:
    """The request of ``request.json`` as KServe's protocol has it over gRPC."""
    image, prompt = (tensor["data"][0] for tensor in REQUEST["inputs"])
    request = oip.ModelInferRequest(model_name=name)
    for tensor, value in (("image", base64.b64decode(image)), ("prompt", prompt.encode())):
        entry = request.inputs.add(name=tensor, datatype="BYTES", shape=[1])
        entry.contents.bytes_contents.append(value)
    request.parameters["scale"].string_param = REQUEST["parameters"]["scale"]
    with grpc.insecure_channel(server.grpc) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=oip.ModelInferRequest.SerializeToString,
            response_deserializer=oip.ModelInferResponse.FromString,
        )
        answer = call(request, timeout=120)
    values = [memoryview(raw).cast("f")[0] for raw in answer.raw_output_contents]
    return dict(zip([output.name for output in answer.outputs], values, strict=True))


def test_a_bundle_that_storage_brings_is_served_under_the_services_name(runtime: Object, tmp_path: Path) -> None:
    """KServe puts the folder that storageUri names at /mnt/models, here with versions in it."""
    write_bundle(tmp_path, "tiny", "1")
    with server_process(arguments(runtime, "tiny", tmp_path / "tiny"), tmp_path / "log") as server:
        assert httpx.get(f"{server.rest}/v2/models/tiny/ready").status_code == 200
