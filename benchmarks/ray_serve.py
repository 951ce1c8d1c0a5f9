"""What a picture costs by each way into critiq on Ray Serve, and into a plain server.

    python -m benchmarks.ray_serve [--pictures 600] [--simultaneous 8]

512x512 JPEG files, each with pixels of its own, and a model that costs next to nothing, so that the way in is seen.
Ray runs on loopback with one replica, deployed from deploy/ray/serve.yaml. CPU is that of all processes of the server,
Ray's included, over what they use when idle, by the kernel's counters; the client's is not in it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import psutil

import critiq
from benchmarks.bundles import write_free
from benchmarks.pictures import JpegAlbum
from benchmarks.server import serving
from tests.support.ray_cluster import ray_critiq

BATCH = 32
IDLE_SECONDS = 10.0
ALBUM = JpegAlbum()
numbers = count()


@dataclass(frozen=True, slots=True)
class Way:
    """A way in: what it is called, where it is, and how many pictures a call holds."""

    name: str
    url: str
    batch: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=600, help="by each way, once one call at a time, once several")
    parser.add_argument("--simultaneous", type=int, default=8, help="calls at once")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    write_free(folder)
    print("| way | pictures a call | p50 ms | p99 ms | CPU ms a picture | at once | pictures/s | CPU ms a picture |")
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    models = ["--models", str(folder), "--load", "free", "--default", "free"]
    with serving(models, None) as plain:
        for batch in (1, BATCH):
            _measure(Way("critiq serve, gRPC", plain.grpc, batch), plain.pid, arguments)
    settings = {"models": {"directories": [str(folder)], "default": "free", "load": ["free"]}}
    with ray_critiq(folder, settings, {"autoscaling_config": {"min_replicas": 1, "max_replicas": 1}}) as ray:
        replica = ray.wait_for_replicas(1, 60)[0]
        for way in (
            Way("direct to the replica, gRPC", replica["grpc"], 1),
            Way("direct to the replica, gRPC", replica["grpc"], BATCH),
            Way("Ray's ingress, gRPC", ray.grpc, 1),
            Way("Ray's ingress, gRPC", ray.grpc, BATCH),
            Way("Ray's ingress, HTTP", ray.rest, 1),
            Way("Ray's ingress, HTTP", ray.rest, BATCH),
        ):
            _measure(way, ray.pid, arguments)
        family = list(_family(ray.pid))
        memory = sum(process.memory_full_info().pss for process in family) / 2**20
        print(f"\nRay: {len(family)} processes, {memory:.0f} MiB, idle {100 * _idle(ray.pid):.1f} % of a core")


def _measure(way: Way, pid: int, arguments: argparse.Namespace) -> None:
    idle = _idle(pid)
    with critiq.Client(way.url, timeout=60, retries=3) as client:
        _run(client, way, 2 * BATCH, arguments.simultaneous)  # warm
        alone = _counted(pid, idle, lambda: _run(client, way, arguments.pictures, 1), arguments.pictures)
        together = _counted(
            pid, idle, lambda: _run(client, way, arguments.pictures, arguments.simultaneous), arguments.pictures
        )
    times = sorted(alone.times)
    print(
        f"| {way.name} | {way.batch} | {1000 * statistics.median(times):.1f} | "
        f"{1000 * times[min(len(times) - 1, int(0.99 * len(times)))]:.1f} | {alone.cpu_ms:.2f} | "
        f"{arguments.simultaneous} | {arguments.pictures / together.seconds:.0f} | {together.cpu_ms:.2f} |",
        flush=True,
    )


@dataclass(frozen=True, slots=True)
class Counted:
    """Seconds of each call, of all, and the server's processor time a picture."""

    times: list[float]
    seconds: float
    cpu_ms: float


def _counted(pid: int, idle: float, work: Callable[[], list[float]], pictures: int) -> Counted:
    before, started = _cpu_seconds(pid), time.perf_counter()
    times = work()
    seconds = time.perf_counter() - started
    used = _cpu_seconds(pid) - before - idle * seconds
    return Counted(times, seconds, 1000 * used / pictures)


def _run(client: critiq.Client, way: Way, pictures: int, simultaneous: int) -> list[float]:
    """Sends so many pictures; returns the seconds of each call."""

    def call(_: int) -> float:
        sent = [ALBUM[next(numbers)].data for _ in range(way.batch)]
        started = time.perf_counter()
        if way.batch == 1:
            client.score(sent[0])
        else:
            for answer in client.score_batch(sent):
                answer.unwrap()
        return time.perf_counter() - started

    calls = max(1, pictures // way.batch)
    if simultaneous == 1:
        return [call(number) for number in range(calls)]
    with ThreadPoolExecutor(simultaneous) as pool:
        return list(pool.map(call, range(calls)))


def _idle(pid: int) -> float:
    """Share of a core that the server uses when nobody calls."""
    before = _cpu_seconds(pid)
    time.sleep(IDLE_SECONDS)
    return (_cpu_seconds(pid) - before) / IDLE_SECONDS


def _family(pid: int) -> Iterator[psutil.Process]:
    root = psutil.Process(pid)
    yield root
    yield from root.children(recursive=True)


def _cpu_seconds(pid: int) -> float:
    """Processor time of all threads of the process and its descendants."""
    total = 0.0
    for process in _family(pid):
        for task in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            try:
                total += int(task.read_text().split()[0]) / 1e9
            except OSError:
                continue  # the thread has ended
    return total


if __name__ == "__main__":
    main()
