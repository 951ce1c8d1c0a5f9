"""Bulk scoring: what it adds to the engine, and what a second worker is worth.

    python -m benchmarks.bulk [--pictures 600] [--rounds 3] [--ray] [--device]

512x512 JPEG pictures in a Parquet file, a small network (12 ms a picture and core with decoding), parts of 20 rows.
The kinds of run take turns, each in a process of its own; medians over the rounds. A run's clock starts at half its
rows, so loading models and starting Ray are left out; the CPU is that of all its processes, Ray's own among them. Each
worker has one core and one thread to compute on, except in "2 cores".

The leading thread is the event loop of "engine" and "local 1", else the one that hands parts out. With --device the
network is a simulated device of 40 pictures a second for each worker: so it shows what workers lose to one another when
the CPU is not what they wait for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pyarrow
import pyarrow.parquet

from benchmarks.bundles import write_cnn, write_simulated
from benchmarks.pictures import JpegAlbum
from critiq_server.assembly import Assembly
from critiq_server.bulk.run import Options, run
from critiq_server.bundles.manifest import Simulated
from critiq_server.engine.demand import Priority
from critiq_server.images.source import EncodedImage
from critiq_server.queries import Item, Query
from critiq_server.settings import Settings, load_settings
from critiq_server.telemetry.metrics import Metrics

PART = 20
DEVICE = Simulated(batch_ms=200.0, item_ms=0.0)
DEVICE_BATCH = 8
COLUMNS = ("rate", "cpu_ms", "leader_ms")
KINDS = ("engine", "local 1", "local 1, 2 cores", "local 2", "ray 1", "ray 2")


class Clock:
    """Measures the second half of a run."""

    def __init__(self) -> None:
        self._marks: list[tuple[float, int, float, float]] = []
        self._rows = 0

    def mark(self, rows: int) -> None:
        self._rows += rows
        self._marks.append((time.perf_counter(), self._rows, _cpu_seconds(), time.thread_time()))

    def result(self) -> dict[str, float]:
        """Pictures a second, and CPU milliseconds a picture: of all processes, and of the thread that leads.

        The first half is left out, in which workers may still be starting, and the last part: others idle beside it.
        """
        (begun, before, *cpu), (ended, after, *cpu_after) = self._marks[len(self._marks) // 2], self._marks[-2]
        rows = after - before
        everything, leader = ((late - early) * 1000 / rows for early, late in zip(cpu, cpu_after, strict=True))
        return {"rate": rows / (ended - begun), "cpu_ms": everything, "leader_ms": leader}


def one(kind: str, folder: Path) -> dict[str, float]:
    """One run, in this process."""
    cores = sorted(os.sched_getaffinity(0))
    if kind in ("engine", "local 1"):
        os.sched_setaffinity(0, cores[:1])
    flags = {"models": {"directories": [folder / "bundles"], "default": "network"}, "log": {"level": "warning"}}
    settings = load_settings(None, flags)
    clock = Clock()
    if kind == "engine":
        asyncio.run(_engine(settings, folder / "in.parquet", clock))
        return clock.result()
    name, workers = kind.split(",", maxsplit=1)[0].split()
    with tempfile.TemporaryDirectory() as output:
        options = Options(
            str(folder / "in.parquet"),
            f"{output}/out",
            "ray" if name == "ray" else "local",
            checkpoint=PART,
            batch=PART,
            workers=int(workers),
        )
        pinned = False

        def report(rows: int, failed: int) -> None:
            nonlocal pinned
            assert not failed
            if name == "ray" and not pinned:
                pinned = _pin_actors(cores)
            clock.mark(rows)

        run(options, settings, lambda plan, units, rows: None, report)
    return clock.result()


async def _engine(settings: Settings, source: Path, clock: Clock) -> None:
    """The same pictures straight to the engine: no reading, no writing."""
    assembly = Assembly(
        settings.model_copy(update={"drift": settings.drift.model_copy(update={"enabled": False})}), Metrics()
    )
    await assembly.load()
    pictures = pyarrow.parquet.read_table(source)["image"].to_pylist()

    async def items() -> AsyncIterator[Item]:
        for number, data in enumerate(pictures):
            yield Item(str(number), Query(EncodedImage(data), priority=Priority.BULK))

    done = 0
    async for answer in assembly.service.score_stream(items()):
        answer.unwrap()
        done += 1
        if done % PART == 0:
            clock.mark(PART)
    await assembly.close()


def _pin_actors(cores: list[int]) -> bool:
    actors = [process for process in psutil.Process().children(recursive=True) if _is_actor(process)]
    for number, actor in enumerate(actors):
        for thread in actor.threads():
            os.sched_setaffinity(thread.id, {cores[number % len(cores)]})
    return bool(actors)


def _is_actor(process: psutil.Process) -> bool:
    command = process.cmdline()
    return bool(command) and command[0].startswith("ray::MapWorker")


def _cpu_seconds() -> float:
    mine = psutil.Process().cpu_times()
    total = mine.children_user + mine.children_system  # of workers that have ended
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def prepare(folder: Path, pictures: int, *, device: bool) -> None:
    """The bundle and the input."""
    if device:
        write_simulated(folder / "bundles", "network", DEVICE, DEVICE_BATCH)
    else:
        write_cnn(folder / "bundles", "network")
    album = JpegAlbum()
    table = pyarrow.table({"image": [album[number].data for number in range(pictures)]})
    pyarrow.parquet.write_table(table, folder / "in.parquet", row_group_size=PART, compression="none")


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ray", action="store_true", help="Ray too.")
    parser.add_argument("--device", action="store_true", help="Workers wait for a simulated device of 40 pictures/s.")
    parser.add_argument("--one", choices=KINDS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one, asked.folder)), flush=True)
        return
    kinds = [kind for kind in KINDS if asked.ray or not kind.startswith("ray")]
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), asked.pictures, device=asked.device)
        for _ in range(asked.rounds):
            for kind in kinds:
                command = [sys.executable, "-m", "benchmarks.bulk", "--one", kind, "--folder", name]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=600)
                found[kind].append(json.loads(done.stdout.splitlines()[-1]))
                print(f"{kind}: {found[kind][-1]}", file=sys.stderr)
    print("| run | pictures/s | CPU ms a picture | of which the leading thread |\n|---|---|---|---|")
    for kind in kinds:
        rate, cpu, leader = (statistics.median(result[key] for result in found[kind]) for key in COLUMNS)
        print(f"| {kind} | {rate:.1f} | {cpu:.2f} | {leader:.2f} |")
    for name in ("local", "ray"):
        if f"{name} 2" in found:
            pairs = list(zip(found[f"{name} 1"], found[f"{name} 2"], strict=True))
            wall = [two["rate"] / (2 * single["rate"]) for single, two in pairs]
            cpu = statistics.median(single["cpu_ms"] / two["cpu_ms"] for single, two in pairs)
            print(f"{name}, 2 workers: rate2 / (2 rate1) {statistics.median(wall):.2f}", end=" ")
            print(f"({min(wall):.2f} to {max(wall):.2f}); CPU a picture with 1 over that with 2: {cpu:.2f}")
    print(f"load average at the end: {os.getloadavg()[0]:.1f} on {len(os.sched_getaffinity(0))} cores")


if __name__ == "__main__":
    main()
