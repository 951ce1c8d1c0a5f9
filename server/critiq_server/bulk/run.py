"""A run from end to end: plan, ledger, engine, manifest."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version as distribution_version
from typing import Any, Literal

from critiq_server.bulk import local, merging
from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.inputs import Columns, plan_input
from critiq_server.bulk.ledger import Identity, Ledger, summary
from critiq_server.bulk.storage import place
from critiq_server.bulk.task import Model, Task, choose_model, for_bulk
from critiq_server.bulk.units import Done, Plan, Unit
from critiq_server.settings import Settings

Report = Callable[[int, int], None]
"""Told rows done and failed, after each unit."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a run is asked for. See docs/bulk.md.

    Attributes:
        checkpoint: the most rows of a part: what a worker may lose of its work.
        batch: pictures that one unit has under way at once.
    """

    input: str
    output: str
    engine: Literal["local", "ray"] = "local"
    model: str = ""
    version: str = ""
    dimensions: tuple[str, ...] = ()
    columns: Columns = field(default_factory=Columns)
    prompts: str = ""
    checkpoint: int = 512
    batch: int = 64
    workers: int = 1
    restart: bool = False
    ray_address: str = ""
    gpus: float = 0.0
    cpus: float = 1.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. ``finished`` is false where somebody stopped it; ``before``: whether it was finished before."""

    finished: bool
    rows: int
    failed: dict[str, int]
    units_left: int = 0
    before: bool = False
    seconds: float = 0.0


class Stop:
    """The first interrupt lets units under way end; the second ends the process."""

    def __init__(self, on_request: Callable[[], None]) -> None:
        self.requested = False
        self._on_request = on_request

    def __call__(self, number: int, frame: object) -> None:
        if self.requested:
            os._exit(130)
        self.requested = True
        self._on_request()


def run(options: Options, settings: Settings, on_plan: Callable[[Plan, int, int], None], report: Report) -> Outcome:
    """Scores what is left of an input; see :class:`Options`.

    Args:
        settings: the server's; what is of its faces is not looked at.
        on_plan: told the plan, and how many units and rows of it were done before.
        report: told after each unit, of this run.

    Raises:
        BulkError: it cannot begin or go on; what is done stays done.
    """
    options = _absolute(options)
    model = choose_model(settings, options.model, options.version, options.dimensions)
    _check_apart(options)
    plan = plan_input(options.input, options.columns, options.checkpoint, options.prompts)
    identity = Identity(_asked(options, model, settings, plan))
    merged = merging.single_file(options.output)
    output = place(merging.parts_of(options.output) if merged else options.output)
    if merged:
        known = merging.manifest_of(options.output, identity.fingerprint, restart=options.restart)
        if known is not None:
            return Outcome(True, known["rows"], known["failed"], before=True)
    ledger = Ledger(output, identity, restart=options.restart)
    try:
        before = summary(ledger.done.values())
        if ledger.complete(plan.units) and not merged:
            return Outcome(True, before["rows"], before["failed"], before=True)
        on_plan(plan, len(ledger.done), before["rows"])
        alone = for_bulk(settings, model, options.batch)
        task = Task(alone, model, bool(options.dimensions), options.columns, output.uri)
        outcome = _score(options, task, plan, ledger, report)
    finally:
        ledger.close()
    if merged and outcome.finished:
        merging.merge(output, options.output)
    return outcome


def _score(options: Options, task: Task, plan: Plan, ledger: Ledger, report: Report) -> Outcome:
    started = time.monotonic()

    def on_done(done: Done) -> None:
        ledger.add(done)
        report(done.rows, sum(done.failed.values()))

    left = ledger.left(plan.units)
    with _interruptible(ledger.ask_to_stop) as stop:
        if left:
            _engine(options)(task, left, on_done, stop)
    counts = summary(ledger.done.values())
    units_left = len(ledger.left(plan.units))
    seconds = time.monotonic() - started
    if units_left:
        if not stop.requested:
            raise BulkError(f"{units_left} units are not done though nothing failed; run the same command again")
        return Outcome(False, counts["rows"], counts["failed"], units_left, seconds=seconds)
    ledger.finish(plan.units, {"parts": len(plan.units), "critiq": distribution_version("critiq")})
    return Outcome(True, counts["rows"], counts["failed"], seconds=seconds)


def _engine(options: Options) -> Callable[[Task, Sequence[Unit], Callable[[Done], None], Stop], None]:
    if options.engine == "ray":
        from critiq_server.bulk.ray_engine import run_ray

        return lambda task, units, on_done, stop: run_ray(
            task, units, on_done, stop, options.workers, options.cpus, options.gpus, options.ray_address
        )
    if options.workers > 1:
        return lambda task, units, on_done, stop: local.run_processes(task, units, on_done, stop, options.workers)
    return local.run_here


@contextmanager
def _interruptible(on_request: Callable[[], None]) -> Iterator[Stop]:
    stop = Stop(on_request)
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _asked(options: Options, model: Model, settings: Settings, plan: Plan) -> dict[str, Any]:
    """All that the output follows from."""
    return {
        "input": options.input,
        "input_fingerprint": plan.fingerprint,
        "model": model.name,
        "model_version": model.version,
        "model_digest": model.digest,
        "dimensions": list(model.dimensions),
        "dimensions_named": bool(options.dimensions),
        "columns": asdict(options.columns),
        "prompts": options.prompts,
        "checkpoint": options.checkpoint,
        "limits": {**settings.limits.image.model_dump(), "prompt_bytes": settings.limits.prompt_bytes},
        "background": list(settings.engine.background),
    }


def _absolute(options: Options) -> Options:
    """Workers may stand elsewhere, and the run is the same from wherever it is started."""
    input_, output, prompts = (
        text if not text or "://" in text else os.path.abspath(text)
        for text in (options.input, options.output, options.prompts)
    )
    return replace(options, input=input_, output=output, prompts=prompts)


def _check_apart(options: Options) -> None:
    """An output among the inputs would be part of the input of the next run."""
    base = re.split(r"[*?\[{]", options.input, maxsplit=1)[0]
    folder = base if base == options.input else base.rpartition("/")[0]
    if f"{options.output.rstrip('/')}/".startswith(f"{folder.rstrip('/')}/"):
        raise BulkError(f"the output {options.output} lies inside the input {folder}; name a place beside it")
