"""critiq on a real Ray of one machine, on loopback, deployed from the very file that operators deploy."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

ROOT = Path(__file__).parents[2]
SERVE_YAML = ROOT / "deploy" / "ray" / "serve.yaml"
CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"


@dataclass
class RayCritiq:
    """The running application. ``grpc`` and ``rest`` are Ray's ingress."""

    grpc: str
    rest: str
    log: Path
    pid: int
    """``serve run``; all of Ray's processes descend from it."""
    key: str = ""
    """For servers that ask for one."""

    @property
    def headers(self) -> dict[str, str]:
        """With the key."""
        return {"x-api-key": self.key} if self.key else {}

    def replicas(self) -> list[dict[str, str]]:
        """What the directory knows."""
        found: list[dict[str, str]] = httpx.get(f"{self.rest}/v1/replicas", headers=self.headers, timeout=60).json()[
            "replicas"
        ]
        return found

    def wait_for_replicas(self, count: int, seconds: float, *, without: int = 0) -> list[dict[str, str]]:
        """The replicas, once there are ``count`` that listen, none of them in the process ``without``."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found: list[dict[str, str]] = []
            with contextlib.suppress(httpx.HTTPError, KeyError):  # the one that answers is being replaced
                found = self.replicas()
            if len(found) >= count and without not in map(listener, found) and all(map(listener, found)):
                return found
            time.sleep(0.2)
        raise AssertionError(f"not {count} replicas within {seconds} s: {found}\n{self.log.read_text()[-4000:]}")


def listener(replica: dict[str, str]) -> int:
    """The process that listens on a replica's gRPC port; 0: none."""
    port = int(replica["grpc"].rpartition(":")[2])
    for connection in psutil.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
            return connection.pid or 0
    return 0


def configuration(settings: dict[str, Any], scorer: dict[str, Any]) -> tuple[dict[str, Any], int, int]:
    """``deploy/ray/serve.yaml`` on free ports, and the ports: HTTP, gRPC; changed only by what is given."""
    document: dict[str, Any] = yaml.safe_load(SERVE_YAML.read_text())
    ports = free_port(), free_port()
    document["http_options"]["port"], document["grpc_options"]["port"] = ports
    application = document["applications"][0]
    application["args"]["settings"] |= settings
    replica = next(entry for entry in application["deployments"] if entry["name"] == "Scorer")
    for name, value in scorer.items():
        replica[name] = {**replica.get(name, {}), **value} if isinstance(value, dict) else value
    return document, *ports


@contextmanager
def ray_critiq(folder: Path, settings: dict[str, Any], scorer: dict[str, Any], key: str = "") -> Iterator[RayCritiq]:
    """Starts Ray with two CPUs and deploys the application with ``serve run``; stops all of it.

    Args:
        folder: for its log and configuration.
        settings: critiq's, by section.
        scorer: entries of the deployment ``Scorer``.
        key: of this caller, if the settings ask for keys.
    """
    document, http, grpc = configuration(settings, scorer)
    path, log = folder / "serve.yaml", folder / "ray.log"
    path.write_text(yaml.safe_dump(document))
    environment = {
        **os.environ,
        CALLBACK: "critiq_server.ray_serve.http_ingress:middlewares",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_SERVE_LOG_TO_STDERR": "1",
        "PYTHONPATH": os.pathsep.join([*(entry for entry in sys.path if entry), str(ROOT)]),
    }
    command = [sys.executable, "-c", _SERVE_RUN, str(path)]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, stdout=stream, stderr=stream, env=environment, cwd=ROOT, start_new_session=True
        )
    running = RayCritiq(f"127.0.0.1:{grpc}", f"http://127.0.0.1:{http}", log, process.pid, key)
    try:
        _wait_until_it_answers(process, running)
        yield running
    finally:
        _stop(process)


# `serve run FILE` on a Ray of two CPUs without a dashboard, whose ports are fixed.
_SERVE_RUN = """
import sys, ray
from ray.serve.scripts import cli
ray.init(address="local", num_cpus=2, include_dashboard=False, logging_level="warning")
cli(["run", sys.argv[1]])
"""


def _wait_until_it_answers(process: subprocess.Popen[bytes], running: RayCritiq, seconds: float = 180.0) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        log = running.log.read_text()
        if process.poll() is not None or "Exception importing application" in log:
            raise AssertionError(f"Ray ended with status {process.returncode}:\n{log[-4000:]}")
        try:
            if httpx.get(f"{running.rest}/readyz", timeout=30).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise AssertionError(f"the application was not ready within {seconds} s:\n{running.log.read_text()[-4000:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends ``serve run``, which ends its Ray; and whatever of it is left."""
    family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    _, left = psutil.wait_procs(family, timeout=5)
    for one in left:
        one.kill()


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port
