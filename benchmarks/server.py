"""A ``critiq serve`` process on a core of its own, and what it uses. For Linux, whose ``/proc`` tells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import urlopen

READY_WITHIN = 60.0


@dataclass(frozen=True, slots=True)
class Metrics:
    """Values of one scrape, by metric name and labels as they stand in the text."""

    values: dict[str, float]

    def since(self, before: Metrics) -> Metrics:
        """What was added after ``before``."""
        return Metrics({name: value - before.values.get(name, 0.0) for name, value in self.values.items()})

    def stage_mean(self, histogram: str) -> float:
        """Mean of a stage histogram, for the stage that computed longest; NaN if nothing was computed."""
        prefix = "critiq_compute_seconds_sum"
        computed = {name.removeprefix(prefix): value for name, value in self.values.items() if name.startswith(prefix)}
        stage = max(computed, key=lambda name: computed[name], default="")
        count = self.values.get(f"{histogram}_count{stage}", 0.0)
        return self.values[f"{histogram}_sum{stage}"] / count if count else float("nan")


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. Addresses are ``host:port``; ``ready_seconds`` is the time from exec until it served."""

    pid: int
    rest: str
    grpc: str
    metrics: str
    ready_seconds: float

    def cpu_seconds(self) -> float:
        """Processor time of all its threads so far, to the nanosecond."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def memory_mb(self) -> float:
        """Proportional set size in MiB: its own pages, and its share of those that other processes use too."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return int(rollup.partition("\nPss:")[2].split()[0]) / 1024

    def scrape(self) -> Metrics:
        with urlopen(f"http://{self.metrics}/metrics") as response:
            lines = response.read().decode().splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return Metrics({name: float(value) for name, _, value in pairs})


@contextmanager
def serving(arguments: Sequence[str], core: int | None) -> Iterator[Server]:
    """Starts ``critiq serve ARGUMENTS`` pinned to ``core``, on free ports, and stops it in the end.

    Raises ``RuntimeError`` with its log if it is not ready within a minute.
    """
    command = [sys.executable, "-m", "critiq.cli", "serve", "--rest-port=0", "--grpc-port=0", "--metrics-port=0"]
    command += ["--set", "log.format=json", *arguments]
    allowed = os.sched_getaffinity(0)
    pin(core)  # a process starts where its parent is
    started = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    os.sched_setaffinity(0, allowed)
    watchdog = threading.Timer(READY_WITHIN, process.kill)
    watchdog.start()
    try:
        assert process.stderr is not None
        event = _serving_event(process.stderr)
        ready = time.perf_counter() - started
        watchdog.cancel()
        threading.Thread(target=process.stderr.read, daemon=True).start()  # so that it never blocks on its log
        rest, metrics = urlsplit(event["rest"]).netloc, urlsplit(event["metrics"]).netloc
        yield Server(process.pid, rest, event["grpc"], metrics, ready)
    finally:
        watchdog.cancel()
        process.terminate()
        process.wait(40)


def pin(core: int | None) -> None:
    """Keeps the calling process on ``core``."""
    if core is not None:
        os.sched_setaffinity(0, {core})


def two_cores() -> tuple[int | None, int | None]:
    """A core for the server and one for the client; none for either where there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return (usable[0], usable[1]) if len(usable) > 1 else (None, None)


def _serving_event(log: IO[str]) -> dict[str, str]:
    lines = []
    for line in log:
        lines.append(line)
        if '"serving"' in line:
            event: dict[str, str] = json.loads(line)
            return event
    raise RuntimeError(f"the server did not start:\n{''.join(lines)}")
