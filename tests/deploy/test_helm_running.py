"""What the chart starts really starts: the container, arguments and settings, on loopback, asked by its probes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.deploy import charts
from tests.deploy.charts import only, outcomes, settings_of
from tests.deploy.kubernetes import Object, read
from tests.support.servers import ServerProcess, server_process

charts.need_helm()


@pytest.fixture(scope="module")
def renders() -> dict[str, list[Object]]:
    values = charts.values_files()
    texts = [outcome["text"] for outcome in outcomes([values["default"], values["hardened"]])]
    return {name: read(text) for name, text in zip(("default", "hardened"), texts, strict=True)}


def arguments(documents: list[Object], root: Path) -> list[str]:
    """The container's, with what is mounted in ``/etc/critiq`` looked for in ``root``; on loopback."""
    (root / "config").mkdir()
    (root / "config" / "critiq.yaml").write_text(settings_of(documents).replace("/etc/critiq/", f"{root}/"))
    given = container(documents)["args"]
    return [argument.replace("/etc/critiq/", f"{root}/") for argument in given] + ["--host=127.0.0.1"]


def container(documents: list[Object]) -> Object:
    found: Object = only(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert "command" not in found, "the image's entry point is `critiq serve`"
    return found


def healthy(probe: dict[str, Any], server: ServerProcess) -> bool:
    """What the kubelet makes of it: health over gRPC, without a key."""
    with grpc.insecure_channel(server.grpc) as channel:
        request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=probe["timeoutSeconds"])
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def run_test_pod(
    documents: list[Object], server: ServerProcess, **environment: str
) -> subprocess.CompletedProcess[str]:
    """``helm test``, with the addresses of this server for those of the Service."""
    python, flag, script, rest, over_grpc = only(documents, "Pod")["spec"]["containers"][0]["command"]
    assert (python, flag, rest, over_grpc) == (
        "python", "-c", "http://critiq.scoring.svc:8000", "grpc://critiq.scoring.svc:8001"
    )  # fmt: skip
    return subprocess.run(
        [sys.executable, flag, script, server.rest, f"grpc://{server.grpc}"],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_default_chart_serves(renders: dict[str, list[Object]], tmp_path: Path) -> None:
    documents = renders["default"]
    probed = container(documents)
    with server_process(arguments(documents, tmp_path), tmp_path / "log") as server:
        assert all(healthy(probed[name], server) for name in ("startupProbe", "readinessProbe", "livenessProbe"))
        assert httpx.get(f"{server.metrics}").status_code == 200
        done = run_test_pod(documents, server)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("visual_quality") == 2
        assert server.terminate() == 0
    assert '"event":"serving"' in (tmp_path / "log").read_text().replace(": ", ":")


def test_the_hardened_chart_serves_those_who_have_a_key(renders: dict[str, list[Object]], tmp_path: Path) -> None:
    documents = renders["hardened"]
    (tmp_path / "keys").mkdir()
    made = subprocess.run(
        [sys.executable, "-m", "critiq.cli", "keys", "new", "test", "--file", str(tmp_path / "keys" / "keys.yaml")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    (key,) = [word for word in made.stdout.split() if word.startswith("critiq_")]
    probed = container(documents)
    with server_process(arguments(documents, tmp_path), tmp_path / "log") as server:
        assert all(healthy(probed[name], server) for name in ("startupProbe", "readinessProbe", "livenessProbe"))
        assert httpx.get(f"{server.rest}/docs").status_code == 401
        assert httpx.get(server.metrics).status_code == 401
        refused = run_test_pod(documents, server)
        assert refused.returncode != 0
        assert "Unauthenticated" in refused.stderr
        done = run_test_pod(documents, server, CRITIQ_API_KEY=key)
        assert done.returncode == 0, done.stderr
