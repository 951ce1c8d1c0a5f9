"""The files in deploy/ray: what Ray and Kubernetes read in them is what they mean."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from critiq_server.ray_serve.arguments import read_arguments, replica_settings
from tests.deploy.kubernetes import Object, as_pod, read, validate
from tests.support import dockerfile

pytest.importorskip("ray", reason="Ray is not installed (pip install 'critiq[ray]')")

from ray.serve.schema import ServeDeploySchema

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "ray"
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


def service() -> Object:
    (document,) = read((FOLDER / "rayservice.yaml").read_text())
    return document


def groups() -> list[Object]:
    cluster = service()["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def configuration(name: str) -> dict[str, Any]:
    text = service()["spec"]["serveConfigV2"] if name == "rayservice.yaml" else (FOLDER / name).read_text()
    found: dict[str, Any] = yaml.safe_load(text)
    return found


FILES = ("serve.yaml", "rayservice.yaml")


@pytest.mark.parametrize("name", FILES)
def test_ray_accepts_the_configuration(name: str) -> None:
    document = configuration(name)
    ServeDeploySchema.model_validate(document)
    (application,) = document["applications"]
    assert callable(found(application["import_path"]))
    for function in document["grpc_options"]["grpc_servicer_functions"]:
        module, _, attribute = function.rpartition(".")
        assert callable(found(f"{module}:{attribute}"))
    assert {entry["name"] for entry in application["deployments"]} == {"Scorer", "Directory"}


def found(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


@pytest.mark.parametrize("name", FILES)
def test_the_replicas_accept_their_settings_and_have_time_to_drain(name: str) -> None:
    (application,) = configuration(name)["applications"]
    settings = replica_settings(read_arguments(application["args"]), Path("grpc"))
    scorer = next(entry for entry in application["deployments"] if entry["name"] == "Scorer")
    assert scorer["graceful_shutdown_timeout_s"] > settings.server.drain_seconds
    assert settings.features.redis.url is None, "Ray logs these settings"
    assert scorer["max_ongoing_requests"] <= settings.limits.in_flight
    longest = settings.limits.max_timeout_seconds
    for options in ("http_options", "grpc_options"):
        assert configuration(name)[options]["request_timeout_s"] > longest


def test_the_comments_name_the_callback_that_ray_must_be_started_with() -> None:
    (path,) = re.findall(rf"{CALLBACK}=(\S+)", (FOLDER / "serve.yaml").read_text())
    (built_in,) = re.findall(rf"{CALLBACK}=(\S+)", (FOLDER / "Dockerfile").read_text())
    for group in groups():
        for container in group["template"]["spec"]["containers"]:
            assert {entry["name"]: entry.get("value") for entry in container["env"]}[CALLBACK] == path == built_in
    (middleware,) = found(path)()
    assert middleware.cls.__name__ == "RetryableFailures"


def test_kubernetes_accepts_the_service_and_its_pods() -> None:
    validate(service())
    for group in groups():
        validate(as_pod(group["template"]["spec"]))


def test_pods_outlive_their_replicas_and_hold_what_the_settings_name() -> None:
    (application,) = configuration("rayservice.yaml")["applications"]
    scorer = next(entry for entry in application["deployments"] if entry["name"] == "Scorer")
    needed = [*application["args"]["settings"]["models"]["directories"]]
    needed.append(str(Path(application["args"]["settings"]["security"]["keys_file"]).parent))
    for group in groups():
        (container,) = group["template"]["spec"]["containers"]
        assert {mount["mountPath"] for mount in container["volumeMounts"]} == set(needed)
        opened = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert opened["serve"] == configuration("rayservice.yaml")["http_options"]["port"]
        assert opened["serve-grpc"] == configuration("rayservice.yaml")["grpc_options"]["port"]
    worker = groups()[1]["template"]["spec"]
    assert worker["terminationGracePeriodSeconds"] > scorer["graceful_shutdown_timeout_s"]
    assert "nvidia.com/gpu" in worker["containers"][0]["resources"]["limits"]


def test_the_image_adds_what_the_extra_says() -> None:
    text = (FOLDER / "Dockerfile").read_text()
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["ray"]
    installed = set(re.findall(r'"(ray\[[a-z,]+\])" (\w+)', text)[0])
    assert installed <= {re.split("[<>=]", entry)[0] for entry in extra}
    base = re.findall(r"ARG CRITIQ=critiq:(\w+)", text)
    assert set(base) <= set(dockerfile.stages())
    assert re.findall(r"^USER (\S+)", text, re.MULTILINE)[-1] == "10001:10001"
    assert "-c constraints.txt" in text
