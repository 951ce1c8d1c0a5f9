"""Real servers on loopback with free ports: inside the test's event loop, or as a process of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from critiq_server.app import App
from critiq_server.settings import Settings, load_settings


def make_settings(*roots: Path, default: str = "tiny", **sections: dict[str, Any]) -> Settings:
    """Settings with free ports and the bundles in ``roots``; the built-in bundle is not loaded."""
    flags: dict[str, Any] = {
        "server": {"rest_port": 0, "grpc_port": 0, "metrics_port": 0},
        "models": {"directories": roots, "default": default, "load": (default,)},
    }
    for section, values in sections.items():
        flags[section] = {**flags.get(section, {}), **values}
    return load_settings(None, flags)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[App]:
    """A server in this event loop."""
    app = App(settings)
    await app.start()
    try:
        yield app
    finally:
        await app.stop(grace=2.0)


@dataclass
class ServerProcess:
    """A ``critiq serve`` process."""

    process: subprocess.Popen[str]
    rest: str
    grpc: str
    metrics: str

    def terminate(self, timeout: float = 120.0) -> int:
        """SIGTERM; returns the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)


@contextmanager
def server_process(
    arguments: Sequence[str],
    log: Path,
    *,
    ready_within: float = 200.0,
    module: str = "critiq.cli",
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """Starts ``critiq serve ARGUMENTS`` on free ports; its log goes to ``log``.

    ``module`` runs in place of the command line, for instance one that makes it fail; ``environment`` comes on top.
    """
    command = [sys.executable, "-m", module, "serve", "--rest-port=0", "--grpc-port=0", "--metrics-port=0"]
    command += ["--set", "log.format=json", *arguments]
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
        )
    try:
        serving = _wait_for_line(process, log, ready_within)
        yield ServerProcess(process, serving["rest"], serving["grpc"], serving["metrics"])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [entry.getsockname()[1] for entry in sockets]


def _wait_for_line(process: subprocess.Popen[str], log: Path, seconds: float) -> dict[str, str]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for line in log.read_text().splitlines():
            if re.search(r'"event": ?"serving"', line):
                found: dict[str, str] = json.loads(line)
                return found
        if process.poll() is not None:
            raise AssertionError(f"the server ended with status {process.returncode}:\n{log.read_text()}")
        time.sleep(0.02)
    raise AssertionError(f"the server was not ready within {seconds} s:\n{log.read_text()}")
