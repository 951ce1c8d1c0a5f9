"""How fast critiq serves, beside what the same parts do without a server.

Starts ``critiq serve`` on one core and sends requests from another. Slices of serving alternate with slices of the
in-process limit (decode + views + onnxruntime at its best batch, on the server's core): other load on the machine then
falls on both.

    python -m benchmarks.serving [--quick] [--model NAME ...] [--case TRANSPORT ...] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, astuple, dataclass, replace
from itertools import count, groupby, repeat
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import uvloop

from benchmarks import bundles
from benchmarks.limit import Limit, LimitSlice, in_process_limit
from benchmarks.load import Load, Slice
from benchmarks.pictures import Kind, make_album
from benchmarks.server import Server, pin, serving, two_cores
from benchmarks.transports import TRANSPORTS, Transport
from critiq_server.bundles import repository
from critiq_server.bundles.repository import find_bundles

BUILTIN = "critiq-builtin"
MODELS = (BUILTIN, "cnn", "free", "simulated")

S = TypeVar("S", Slice, LimitSlice)


@dataclass(frozen=True, slots=True)
class Case:
    """``concurrency`` counts calls; a batch call holds 32 pictures."""

    transport: str
    kind: Kind
    concurrency: int
    same: bool = False


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int
    slice_seconds: float
    starts: int


def _directory(model: str, root: Path) -> Path:
    """The newest version's bundle."""
    versions = find_bundles([root, repository.BUILTIN])[model]
    return versions[next(reversed(versions))].directory


def _prompted(model: str) -> bool:
    return model == BUILTIN


FULL, QUICK = Effort(6, 0.8, 5), Effort(3, 0.5, 2)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: medians over the rounds.

    ``ratio`` compares the best rates of serving and limit, since other load only ever slows a slice down; ``cpu_ratio``
    the median processor times a picture, which it hardly disturbs; ``added_ms`` is the best median latency less the
    limit's best with single pictures.
    """

    case: Case
    served: Slice
    limit: LimitSlice | None = None
    ratio: float | None = None
    cpu_ratio: float | None = None
    added_ms: float | None = None


def cases_of(model: str, *, quick: bool) -> list[Case]:
    if model == "free":
        return [Case(name, "tiny", 32) for name in ("grpc", "protobuf", "json", "stream")] + [Case("batch", "tiny", 4)]
    if model == "simulated":
        return [Case(name, "tiny", 64) for name in ("grpc", "protobuf", "stream")] + [Case("batch", "tiny", 2)]
    if quick:
        return [
            *(Case("grpc", "jpeg", callers) for callers in (1, 32)),
            *(Case("file", "jpeg", callers) for callers in (1, 32)),
            Case("batch", "jpeg", 2),
            Case("grpc", "jpeg", 1, same=True),
        ]
    return [
        *(Case(name, "jpeg", callers) for name in ("grpc", "file") for callers in (1, 8, 32)),
        *(Case(name, "jpeg", 32) for name in ("protobuf", "json", "stream")),
        *(Case("batch", "jpeg", calls) for calls in (1, 2)),
        *(Case("grpc", "raw", callers) for callers in (1, 32)),
        *(Case(name, "raw", 32) for name in ("protobuf", "json", "stream")),
        Case("batch", "raw", 2),
        *(Case(name, "jpeg", callers, same=True) for name in ("grpc", "file") for callers in (1, 32)),
        Case("grpc", "raw", 1, same=True),
    ]


async def measure(
    case: Case, load: Load, transport: Transport, server: Server, limit: Limit | None, effort: Effort
) -> Row:
    """Alternates slices of the limit with slices of serving."""
    served: list[Slice] = []
    limits: list[tuple[LimitSlice, LimitSlice | None]] = []
    async with transport.connect(server, case.concurrency) as send:
        await load.prime(send)
        # The built-in model's last stage is cheaper than a look-up, so that its answers never count as stored.
        stored = None if case.same and load.prompts else case.same
        probe = await load.run(4 * case.concurrency, send, stored)
        rounds = probe.rate * effort.slice_seconds / transport.group / case.concurrency
        for _ in range(effort.rounds):
            if limit is not None:
                alone = case.concurrency == 1 and transport.group == 1
                single = limit.measure(effort.slice_seconds / 4, batch=1) if alone else None
                limits.append((limit.measure(effort.slice_seconds), single))
            served.append(await load.run(case.concurrency * max(2, round(rounds)), send, stored))
    return _row(case, served, limits)


def _row(case: Case, served: Sequence[Slice], limits: Sequence[tuple[LimitSlice, LimitSlice | None]]) -> Row:
    middle = _median(served)
    if not limits:
        return Row(case, middle)
    best = [slice_ for slice_, _ in limits]
    singles = [single.batch_ms for _, single in limits if single is not None]
    return Row(
        case,
        middle,
        _median(best),
        ratio=max(ours.rate for ours in served) / max(theirs.rate for theirs in best),
        cpu_ratio=median(theirs.cpu_ms for theirs in best) / middle.cpu_ms,
        added_ms=min(ours.p50_ms for ours in served) - min(singles) if singles else None,
    )


def _median(slices: Sequence[S]) -> S:
    """A slice with the median of every figure."""
    return type(slices[0])(*(median(values) for values in zip(*map(astuple, slices), strict=True)))


async def benchmark(model: str, root: Path, effort: Effort, wanted: Sequence[str], *, quick: bool) -> list[Row]:
    """All cases of one model."""
    ours, theirs = two_cores()
    numbers = count()
    rows = []
    arguments = ["--default", model, "--load", model, "--models", str(root), "--set", "limits.image.min_side=8"]
    with serving(arguments, ours) as server:
        pin(theirs)
        for kind, cases in groupby(cases_of(model, quick=quick), key=lambda case: case.kind):
            album = make_album(kind)
            with ExitStack() as stack:
                limit = None
                if model != "simulated":
                    limit = stack.enter_context(in_process_limit(_directory(model, root), kind, _prompted(model), ours))
                for case in cases:
                    if wanted and case.transport not in wanted:
                        continue
                    transport = TRANSPORTS[case.transport]
                    load = Load(
                        server,
                        transport,
                        album,
                        repeat(0) if case.same else numbers,
                        prompts=_prompted(model),
                        concurrency=case.concurrency,
                    )
                    row = await measure(case, load, transport, server, None if case.same else limit, effort)
                    rows.append(row)
                    print(_line(row), flush=True)
    return rows


def measure_start(model: str, root: Path, starts: int) -> tuple[float, float]:
    """Seconds from exec to ready and MiB of an idle server: medians over ``starts`` starts."""
    core, _ = two_cores()
    arguments = ["--default", model, "--load", model, "--models", str(root)]
    seconds, sizes = [], []
    for _ in range(starts):
        with serving(arguments, core) as server:
            seconds.append(server.ready_seconds)
            time.sleep(0.5)
            sizes.append(server.memory_mb())
    return median(seconds), median(sizes)


_HEAD = (
    "| request | pictures | at once | pictures/s | limit/s | ratio | CPU ratio | p50 ms | p99 ms | added ms | batch | "
    "queue ms | server CPU ms | client core |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"
)


def _line(row: Row) -> str:
    case, served = row.case, row.served
    cells = [
        TRANSPORTS[case.transport].title,
        f"{case.kind}{', the same' if case.same else ''}",
        str(case.concurrency),
        f"{served.rate:.1f}" if served.rate < 1000 else f"{served.rate:.0f}",
        _number(row.limit.rate if row.limit else None, 1),
        _number(row.ratio, 3),
        _number(row.cpu_ratio, 3),
        f"{served.p50_ms:.2f}",
        f"{served.p99_ms:.2f}",
        _number(row.added_ms, 2),
        _number(served.mean_batch, 1),
        _number(served.queue_ms, 2),
        f"{served.cpu_ms:.3f}",
        f"{served.client_share:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, decimals: int) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.{decimals}f}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--quick", action="store_true", help="under a minute: few cases, short slices, not the built-in model"
    )
    parser.add_argument("--model", action="append", choices=MODELS, help="only this model; may be repeated")
    parser.add_argument(
        "--case", action="append", choices=list(TRANSPORTS), help="only this way to ask; may be repeated"
    )
    parser.add_argument("--rounds", type=int, help="pairs of slices a case")
    parser.add_argument("--json", type=Path, help="write all figures to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes it started end with it
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = replace(effort, rounds=options.rounds)
    models = options.model or [name for name in MODELS if name != BUILTIN or not options.quick]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        for write in (bundles.write_cnn, bundles.write_free, bundles.write_simulated):
            write(root)
        for model in models:
            if model == BUILTIN and BUILTIN not in find_bundles([repository.BUILTIN]):
                print(f"\nThis build has no model {BUILTIN}.")
                continue
            seconds, size = measure_start(model, root, effort.starts)
            print(f"\n**{model}**: ready {seconds:.2f} s after exec, {size:.0f} MiB when idle\n\n{_HEAD}")
            rows = uvloop.run(benchmark(model, root, effort, options.case or (), quick=options.quick))
            found[model] = {"ready_seconds": seconds, "idle_mb": size, "rows": [asdict(row) for row in rows]}
    if options.json:
        options.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
