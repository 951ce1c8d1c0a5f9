"""What the chart starts really starts: the container, arguments and settings, on loopback, asked by its probes."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

import critiq
from tests.deploy import charts
from tests.deploy.charts import arguments_of, only, outcomes, settings_of
from tests.deploy.kubernetes import Object, read
from tests.fixtures.images import encoded, photo
from tests.support.bundles import write_bundle
from tests.support.certificates import Authority
from tests.support.servers import ServerProcess, server_process

charts.need_helm()


NAMES = ("default", "hardened", "tls", "mutual-tls")


@pytest.fixture(scope="module")
def renders() -> dict[str, list[Object]]:
    values = charts.values_files()
    return {
        name: read(outcome["text"])
        for name, outcome in zip(NAMES, outcomes([values[name] for name in NAMES]), strict=True)
    }


def mounted(text: str, root: Path) -> str:
    """With what is mounted in ``/etc/critiq`` looked for in ``root``."""
    return text.replace("/etc/critiq/", f"{root}/")


def arguments(documents: list[Object], root: Path, *, small: bool = True) -> list[str]:
    """The container's, on loopback; ``small``: with a small model that is there at once."""
    (root / "config").mkdir()
    (root / "config" / "critiq.yaml").write_text(mounted(settings_of(documents), root))
    given = [mounted(argument, root) for argument in arguments_of(container(documents))] + ["--host=127.0.0.1"]
    if small:
        write_bundle(root / "models")
        given += [f"--models={root / 'models'}", "--default=tiny", "--load=tiny"]
    return given


def container(documents: list[Object]) -> Object:
    found: Object = only(documents, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    return found


def healthy(documents: list[Object], server: ServerProcess, root: Path) -> bool:
    """What the kubelet makes of the probes, without a key and without trusting any certificate."""
    probed = container(documents)
    return all(asked(probed[name], server, root) for name in ("startupProbe", "readinessProbe", "livenessProbe"))


def asked(probe: dict[str, Any], server: ServerProcess, root: Path) -> bool:
    if "grpc" in probe:
        with grpc.insecure_channel(server.grpc) as channel:
            request = health_pb2.HealthCheckRequest(service=probe["grpc"].get("service", ""))
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=probe["timeoutSeconds"])
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)
    if "httpGet" in probe:
        assert probe["httpGet"]["scheme"] == "HTTPS"
        return httpx.get(server.rest + probe["httpGet"]["path"], verify=False).status_code == 200  # noqa: S501
    python, flags, script = probe["exec"]["command"]
    assert python == "python"
    script = mounted(script, root).replace('"localhost", 8000', f'"localhost", {urlsplit(server.rest).port}')
    command = [sys.executable, flags, script]
    return subprocess.run(command, timeout=probe["timeoutSeconds"] + 5, check=False).returncode == 0


def run_test_pod(
    documents: list[Object], server: ServerProcess, root: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """``helm test``, with the addresses of this server for those of the Service, and ``environment`` from Secrets."""
    tester = only(documents, "Pod")["spec"]["containers"][0]
    python, flag, script, rest, over_grpc = tester["command"]
    paths = {entry["name"]: mounted(entry["value"], root) for entry in tester.get("env", []) if "value" in entry}
    assert (python, flag) == ("python", "-c")
    assert (urlsplit(rest).netloc, urlsplit(over_grpc).netloc) == ("critiq.scoring.svc:8000", "critiq.scoring.svc:8001")
    urls = [server.rest, server.grpc if "://" in server.grpc else f"grpc://{server.grpc}"]
    assert [urlsplit(url).scheme for url in urls] == [urlsplit(rest).scheme, urlsplit(over_grpc).scheme]
    return subprocess.run(
        [sys.executable, flag, script, *urls],
        env={**os.environ, **environment, **paths}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_the_default_chart_serves(renders: dict[str, list[Object]], tmp_path: Path) -> None:
    documents = renders["default"]
    with server_process(arguments(documents, tmp_path, small=False), tmp_path / "log") as server:
        assert healthy(documents, server, tmp_path)
        assert httpx.get(f"{server.metrics}").status_code == 200
        done = run_test_pod(documents, server, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("visual_quality") == 2
        assert server.terminate() == 0


def test_the_hardened_chart_serves_those_who_have_a_key(renders: dict[str, list[Object]], tmp_path: Path) -> None:
    documents = renders["hardened"]
    (tmp_path / "keys").mkdir()
    made = subprocess.run(
        [sys.executable, "-m", "critiq.cli", "keys", "new", "test", "--file", str(tmp_path / "keys" / "keys.yaml")],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    (key,) = [word for word in made.stdout.split() if word.startswith("critiq_")]
    with server_process(arguments(documents, tmp_path), tmp_path / "log") as server:
        assert healthy(documents, server, tmp_path)
        assert httpx.get(f"{server.rest}/docs").status_code == 401
        assert httpx.get(server.metrics).status_code == 401
        assert httpx.post(f"{server.rest}/v1/score", json={}).status_code == 401
        done = run_test_pod(documents, server, tmp_path, CRITIQ_API_KEY=key)
        assert done.returncode == 0, done.stderr


def secret(authority: Authority, folder: Path) -> None:
    """What a Secret of the type kubernetes.io/tls becomes where it is mounted."""
    folder.mkdir()
    files = authority.server()
    for path, name in ((files.certificate, "tls.crt"), (files.key, "tls.key"), (files.ca, "ca.crt")):
        (folder / name).write_bytes(path.read_bytes())


def test_with_tls_the_probes_ask_over_https(renders: dict[str, list[Object]], tmp_path: Path) -> None:
    documents = renders["tls"]
    for name in ("tls", "client-ca"):
        secret(Authority(tmp_path / f"{name}-authority"), tmp_path / name)
    with server_process(arguments(documents, tmp_path), tmp_path / "log") as server:
        assert server.rest.startswith("https:")
        assert healthy(documents, server, tmp_path)
        done = run_test_pod(documents, server, tmp_path)
        assert done.returncode == 0, done.stderr


def test_with_client_certificates_the_probes_show_theirs(renders: dict[str, list[Object]], tmp_path: Path) -> None:
    documents = renders["mutual-tls"]
    secret(Authority(tmp_path / "servers"), tmp_path / "tls")
    clients = Authority(tmp_path / "clients")
    secret(clients, tmp_path / "client-ca")
    secret(clients, tmp_path / "client")
    with server_process(arguments(documents, tmp_path), tmp_path / "log") as server:
        assert healthy(documents, server, tmp_path)
        with pytest.raises(httpx.HTTPError):
            httpx.get(f"{server.rest}/healthz", verify=False)  # noqa: S501
        done = run_test_pod(documents, server, tmp_path)
        assert done.returncode == 0, done.stderr
        (tmp_path / "client" / "tls.crt").write_bytes((tmp_path / "tls" / "tls.crt").read_bytes())
        (tmp_path / "client" / "tls.key").write_bytes((tmp_path / "tls" / "tls.key").read_bytes())
        assert not healthy(documents, server, tmp_path), "a certificate of another authority"


def test_a_pod_that_is_replaced_loses_no_call(renders: dict[str, list[Object]], tmp_path: Path) -> None:
    """The end of a rolling update, at its worst: callers still have the address of the pod that stops."""
    documents = renders["default"]
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    started = [arguments(documents, tmp_path / name) for name in ("old", "new")]
    with (
        server_process(started[0], tmp_path / "old" / "log") as old,
        server_process(started[1], tmp_path / "new" / "log") as new,
    ):
        stop = threading.Event()
        with critiq.Client(f"{old.grpc},{new.grpc}") as client, ThreadPoolExecutor(8) as threads:
            callers = [threads.submit(call_until, stop, client, seed) for seed in range(8)]
            time.sleep(0.5)
            assert old.terminate() == 0
            time.sleep(0.5)
            stop.set()
            answered = sum(caller.result() for caller in callers)
        assert answered > 50
        assert healthy(documents, new, tmp_path)


def call_until(stop: threading.Event, client: critiq.Client, seed: int) -> int:
    """Calls answered; one that fails in the end raises."""
    answered = 0
    while not stop.is_set():
        client.score(encoded(photo(32, 32, seed=1000 * seed + answered), "PNG"), timeout=60)
        answered += 1
    return answered
