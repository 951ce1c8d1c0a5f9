"""A fleet on paper: how long bulk scoring takes on many machines, and what bounds it.

    python -m benchmarks.bulk_model [--set machines=200] [--set part_rows=2048] ...

Not a measurement. Each machine takes a part when it is free, which is what Ray does; a part takes the time that its
slowest resource needs, spread by ``spread``; machines fail at random, lose what they have under way, and come back.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from dataclasses import dataclass, fields, replace


@dataclass(frozen=True)
class Assumptions:
    """Times in seconds unless a name says otherwise. Where a default comes from is in docs/scaling.md."""

    pictures: float = 1e9
    machines: int = 100
    cores: int = 16
    """Of each machine, for decoding."""
    gpu_rate: float = 1500.0
    """Pictures a second that a machine's GPU computes."""
    decode_ms: float = 5.0
    """Of one core: reading, decoding, cutting views."""
    workers: int = 4
    """Processes on each machine, which share its GPU."""
    loop_ms: float = 1.0
    """Of a process's event loop for each picture: one thread, whatever the GPU could do."""
    picture_kb: float = 110.0
    machine_gbit: float = 10.0
    """Network of one machine."""
    store_gbit: float = 400.0
    """All that the object store gives to this job."""
    part_rows: int = 4096
    driver_ms: float = 12.0
    """Of the one driver for each part: handing it out, taking its counts, its line of the ledger."""
    start_seconds: float = 90.0
    """From a machine's start to its first picture: image, bundle, engine."""
    plan_seconds: float = 60.0
    """Listing the input and reading footers."""
    spread: float = 0.25
    """Standard deviation of a part's time over its mean: parts of large pictures, slow disks, neighbours."""
    failures_per_machine_day: float = 0.2
    parts_under_way: int = 2
    """On each machine; a failure loses half of each on average."""


@dataclass(frozen=True)
class Forecast:
    """What comes of it. ``bounds``: pictures a second that each resource would allow on its own, for the fleet."""

    hours: float
    rate: float
    efficiency: float
    bounds: dict[str, float]
    tail_seconds: float
    redone_share: float

    @property
    def bottleneck(self) -> str:
        return min(self.bounds, key=self.bounds.__getitem__)


def forecast(given: Assumptions, seed: int = 0) -> Forecast:
    """Plays the run once. The efficiency is held against the machines' GPUs alone, never waiting."""
    kilobits = given.picture_kb * 8
    machine = {
        "GPU": given.gpu_rate,
        "decoding": given.cores / given.decode_ms * 1000,
        "event loops": given.workers / given.loop_ms * 1000,
        "network of a machine": given.machine_gbit * 1e6 / kilobits,
    }
    bounds = {name: rate * given.machines for name, rate in machine.items()}
    bounds["object store"] = given.store_gbit * 1e6 / kilobits
    bounds["driver"] = given.part_rows / given.driver_ms * 1000
    # Shared resources are shared evenly: each machine sees its part of them.
    rate = min(*machine.values(), bounds["object store"] / given.machines, bounds["driver"] / given.machines)
    parts = math.ceil(given.pictures / given.part_rows)
    begin = given.plan_seconds + given.start_seconds
    end, first_idle, redone = _play(given, parts, given.part_rows / rate, random.Random(seed))
    hours = (begin + end) / 3600
    ideal = given.pictures / (given.gpu_rate * given.machines)
    return Forecast(
        hours, given.pictures / (begin + end), ideal / (begin + end), bounds, end - first_idle, redone / parts
    )


def _play(given: Assumptions, parts: int, seconds: float, chance: random.Random) -> tuple[float, float, float]:
    """Until when it takes, when the first machine has nothing left to do, and how many parts are done again."""
    deviation = math.sqrt(math.log(1 + given.spread**2))
    per_second = given.failures_per_machine_day / 86_400
    free = [0.0] * given.machines
    redone = 0.0
    for _ in range(parts):
        start = heapq.heappop(free)
        took = seconds * chance.lognormvariate(-(deviation**2) / 2, deviation)
        while chance.random() < 1 - math.exp(-per_second * took):
            # What it had under way is lost, and done again once the machine is back.
            start += took * chance.random() + given.start_seconds
            redone += given.parts_under_way / 2
            took += seconds * (given.parts_under_way - 1) / 2
        heapq.heappush(free, start + took)
    return max(free), min(free), redone


def main() -> None:
    """Prints a table over numbers of machines, and what bounds the fleet that was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    given = Assumptions()
    kinds = {field.name: type(getattr(given, field.name)) for field in fields(given)}
    for assignment in parser.parse_args().set:
        name, _, value = assignment.partition("=")
        if name not in kinds:
            parser.error(f"there is no {name!r}; there are {', '.join(kinds)}")
        given = replace(given, **{name: kinds[name](float(value))})
    print("| machines | pictures/s | hours | efficiency | tail s | parts redone | bound by |")
    print("|---|---|---|---|---|---|---|")
    for machines in sorted({1, 2, 10, 50, 100, 200, 500, given.machines}):
        found = forecast(replace(given, machines=machines))
        print(
            f"| {machines} | {found.rate:,.0f} | {found.hours:.2f} | {found.efficiency:.2f} | {found.tail_seconds:.1f} "
            f"| {found.redone_share:.3%} | {found.bottleneck} |"
        )
    print(f"\n{given.machines} machines, pictures a second that each resource allows:")
    for name, rate in sorted(forecast(given).bounds.items(), key=lambda entry: entry[1]):
        print(f"  {name}: {rate:,.0f}")


if __name__ == "__main__":
    main()
