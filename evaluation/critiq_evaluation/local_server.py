"""A server of our own for one evaluation: a process on free ports of the loopback address."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from critiq_evaluation.errors import EvaluationError


@contextmanager
def local_server(models: Sequence[str], bundles: Sequence[Path] = (), *, ready_within: float = 300.0) -> Iterator[str]:
    """Serves models for as long as the context lasts; yields where, as :class:`critiq.Client` takes it.

    Args:
        models: ``NAME`` or ``NAME:VERSION`` to load; the first is the default. Empty, or an empty name: the built-in
            model.
        bundles: directories that hold bundles, as ``critiq serve --models`` takes them.
        ready_within: seconds until all are loaded.

    Raises:
        EvaluationError: the server did not start; the message has what it said last.
    """
    for directory in bundles:
        if not directory.is_dir():
            raise EvaluationError(f"{directory} is no directory of bundles")
    named = [name for name in models if name]
    command = [sys.executable, "-m", "critiq.cli", "serve", "--rest-port=0", "--grpc-port=0", "--metrics-port=0"]
    command += ["--host=127.0.0.1", "--set=log.format=json", *(f"--models={directory}" for directory in bundles)]
    command += [f"--load={name}" for name in named]
    command += [f"--default={named[0].partition(':')[0]}"] if named else []
    with tempfile.TemporaryDirectory(prefix="critiq-serve-") as folder:
        log = Path(folder) / "log"
        with log.open("w") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=stream, env={**os.environ, "PYTHONUNBUFFERED": "1"}
            )
        try:
            yield str(_wait(process, log, ready_within)["grpc"])
        finally:
            _stop(process)


def _wait(process: subprocess.Popen[bytes], log: Path, seconds: float) -> dict[str, Any]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        lines = log.read_text(errors="replace").splitlines()
        for line in lines:
            entry = _entry(line)
            if entry.get("event") == "serving":
                return entry
        if process.poll() is not None:
            raise EvaluationError(f"the local server did not start: {lines[-1] if lines else 'it said nothing'}")
        time.sleep(0.05)
    raise EvaluationError(f"the local server was not ready within {seconds:g} s")


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(15.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
