"""Does drift raise false alarms, and how many requests does a change take to be noticed?

    python benchmarks/drift.py                 # the tables of docs/drift.md
    python benchmarks/drift.py --seeds 2       # a quick look

Traffic is simulated, the rest is the server's own code with a clock that is set: ``DriftMonitor`` takes the scores in
and looks at them every minute, with its default settings. Nothing here decides what an alarm is.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import numpy as np
import structlog
from numpy.typing import NDArray

from critiq.types import ImageReport, Score
from critiq_server.bundles.manifest import Dimension, ImageInput, Licence, Manifest, Provenance, ResizeView, Stage
from critiq_server.scoring.drift import DriftMonitor
from critiq_server.scoring.drift_settings import DriftSettings

MINUTE, DAY = 60.0, 86400.0
START = 1_800_000_000.0 // DAY * DAY
Scores = NDArray[np.float64]
Draw = Callable[[np.random.Generator, int], Scores]

SHIFTS: dict[str, Draw] = {
    "mean + 0.1 sd": lambda rng, n: rng.normal(0.1, 1, n),
    "mean + 0.25 sd": lambda rng, n: rng.normal(0.25, 1, n),
    "mean + 0.5 sd": lambda rng, n: rng.normal(0.5, 1, n),
    "sd x 1.25": lambda rng, n: rng.normal(0, 1.25, n),
    "sd x 1.5": lambda rng, n: rng.normal(0, 1.5, n),
    "10 % from a new generator": lambda rng, n: mixture(rng, n, 0.1),
    "20 % from a new generator": lambda rng, n: mixture(rng, n, 0.2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--seeds", type=int, default=10, help="Runs of each row of stationary traffic; 2 of each shift."
    )
    parser.add_argument("--days", type=int, default=30, help="Stationary days.")
    parser.add_argument("--only", choices=["stationary", "shifts", "cost"], help="One of the tables.")
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args()
    started = time.perf_counter()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with ProcessPoolExecutor(arguments.processes) as pool:
        if arguments.only in (None, "stationary"):
            stationary(pool, arguments.seeds, arguments.days)
        if arguments.only in (None, "shifts"):
            shifts(pool, 2 * arguments.seeds)
    if arguments.only in (None, "cost"):
        cost()
    print(f"\n{time.perf_counter() - started:.0f} s", file=sys.stderr)


def stationary(pool: ProcessPoolExecutor, seeds: int, days: int) -> None:
    """Prints how often traffic that does not change warned and alarmed."""
    print(f"Stationary traffic, {days} days a run:\n")
    print("| scores | count_as_one | requests a day | runs | looks | warnings | alarms |")
    print("|---|---|---|---|---|---|---|")
    for per_prompt, as_one in ((1, 1.0), (4, 1.0), (4, 2.5)):
        what = "independent" if per_prompt == 1 else f"{per_prompt} of each prompt, correlated 0.5"
        for rate in (2_000, 20_000, 200_000):
            found = list(pool.map(partial(still, per_prompt, as_one, rate, days), range(seeds)))
            warnings, alarms = (sum(column) for column in zip(*found, strict=True))
            looks = seeds * days * 1440
            print(f"| {what} | {as_one:g} | {rate:,} | {seeds} | {looks:,} | {warnings} | {alarms} |", flush=True)


def shifts(pool: ProcessPoolExecutor, seeds: int) -> None:
    """Prints how many requests of changed traffic came until the alarm."""
    print("\nRequests after the change until the alarm, median (90th percentile):\n")
    columns = [(10_000, 1.0, 20_000), (50_000, 1.0, 20_000), (50_000, 1.0, 200_000), (50_000, 2.5, 20_000)]
    heads = [f"baseline of {size:,}, {rate:,} a day, count_as_one {as_one:g}" for size, as_one, rate in columns]
    print(f"| change | {' | '.join(heads)} |")
    print("|---" * (len(columns) + 1) + "|")
    for name in SHIFTS:
        cells = [cell(pool.map(partial(changed, name, *column), range(seeds))) for column in columns]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def cost() -> None:
    """Prints what watching costs the event loop."""
    answers = [
        (Score("quality", raw, None, None, "higher_is_better", "absolute", "simulated", "1", False),)
        for raw in np.random.default_rng(0).normal(size=200_000).tolist()
    ]
    picture = ImageReport("PNG", 1024, 1024)
    print("\n| | microseconds |\n|---|---|")
    for enabled in (False, True):
        monitor = DriftMonitor(DriftSettings(enabled=enabled))
        started = time.perf_counter()
        for scores in answers:
            monitor.observe(MANIFEST, scores, picture, 1_500_000, 80)
        seconds = time.perf_counter() - started
        what = "on: one score and four properties of the picture" if enabled else "off"
        print(f"| an answer, watching {what} | {seconds / len(answers) * 1e6:.2f} |")
    traffic = Traffic(DriftSettings(), 200_000, 0)
    draw = partial(grouped, per_prompt=1)
    times = []
    for _ in range(1440):
        started = time.perf_counter()
        traffic.minute(draw)
        times.append(time.perf_counter() - started)
    print(f"| a look at one series, a minute's scores taken in (median of a day) | {np.median(times) * 1e6:.0f} |")


def cell(found: Iterable[float]) -> str:
    requests = np.array(list(found))
    median, late = np.quantile(requests, [0.5, 0.9], method="inverted_cdf")
    missed = int(np.isinf(requests).sum())
    return f"{rounded(median)} ({rounded(late)})" + (f"; {missed} of {len(requests)} not in 14 days" * (missed > 0))


def rounded(value: float) -> str:
    """To two digits."""
    if math.isinf(value):
        return "not in 14 days"
    digits = 1 - math.floor(math.log10(value))
    return f"{int(round(value, digits)):,}"


def still(per_prompt: int, as_one: float, rate: int, days: int, seed: int) -> tuple[int, int]:
    """Warnings and alarms in so many days of traffic that does not change."""
    draw = partial(grouped, per_prompt=per_prompt)
    traffic = Traffic(DriftSettings(count_as_one=as_one), rate, seed)
    events = {"warning": 0, "alarm": 0}
    state = "learning"
    for _ in range(days * 1440):
        found = traffic.minute(draw)
        if found != state and found in events:
            events[found] += 1
        state = found
    return events["warning"], events["alarm"]


def changed(name: str, baseline: int, as_one: float, rate: int, seed: int) -> float:
    """Requests from the change until the alarm; the baseline, and two days more, come before."""
    traffic = Traffic(DriftSettings(baseline_requests=baseline, count_as_one=as_one), rate, 1000 + seed)
    for _ in range(2 * 1440 + round(1440 * baseline / rate)):
        traffic.minute(lambda rng, n: rng.normal(0, 1, n))
    before = traffic.count
    for _ in range(14 * 1440):
        if traffic.minute(SHIFTS[name]) == "alarm":
            return traffic.count - before
    return math.inf


class Traffic:
    """A server's monitor, and a clock that goes a minute at a time. The rate follows the sun, one peak a day."""

    def __init__(self, settings: DriftSettings, rate: int, seed: int) -> None:
        self.now, self.count = START, 0
        self._rate = rate / 1440
        self._rng = np.random.default_rng(seed)
        self._monitor = DriftMonitor(settings, lambda: self.now)

    def minute(self, draw: Draw) -> str:
        """A minute's scores, then a look; returns the state."""
        self.now += MINUTE
        expected = self._rate * (1 + 0.8 * math.sin(2 * math.pi * self.now / DAY))
        n = int(self._rng.poisson(expected))
        self.count += n
        if n:
            self._monitor.record(MANIFEST, "", {("score", "quality"): draw(self._rng, n)}, self.now)
        self._monitor.look_at_all()
        return self._monitor.all()[0][3].state if self.count else "learning"


def mixture(rng: np.random.Generator, n: int, share: float) -> Scores:
    """A new generator gives a share of the pictures; its scores lie 1.5 sd higher and closer together."""
    return np.where(rng.random(n) < share, rng.normal(1.5, 0.7, n), rng.normal(0, 1, n))


def grouped(rng: np.random.Generator, n: int, per_prompt: int) -> Scores:
    """Standard normal scores, so many in a row of one prompt: half of the variance is the prompt's."""
    prompts = np.repeat(rng.normal(0, 1, n // per_prompt + 1), per_prompt)[:n]
    return math.sqrt(0.5) * prompts + math.sqrt(0.5) * rng.normal(0, 1, n)


def _manifest() -> Manifest:
    stage = Stage(
        name="head",
        runtime="onnx",
        graph="head.onnx",
        inputs={"image": ImageInput(view=ResizeView(height=8, width=8))},
        outputs=["quality"],
    )
    dimension = Dimension(name="quality", title="Quality", description="", stage="head", output="quality")
    return Manifest(
        name="simulated",
        version="1",
        family="simulated",
        title="simulated",
        description="",
        stages=[stage],
        dimensions=[dimension],
        licence=Licence(code="", weights=""),
        provenance=Provenance(created="2026-01-01", command="benchmarks/drift.py"),
        files={"head.onnx": "0" * 64},
    )


MANIFEST = _manifest()

if __name__ == "__main__":
    main()
