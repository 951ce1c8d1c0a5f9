"""Workers as actors of Ray Data: on this machine, or all over a cluster that reaches the same storage."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.ledger import STOP
from critiq_server.bulk.local import UNITS_AT_ONCE, Stop
from critiq_server.bulk.scorer import Scorer
from critiq_server.bulk.storage import place
from critiq_server.bulk.task import Task
from critiq_server.bulk.units import Done, Unit
from critiq_server.telemetry.logs import configure

_MOST_BLOCKS = 10_000
"""Of Ray Data. Each is handed out as a whole: of more units, several share one."""

_STORE_BYTES = 200 * 2**20
"""Of a Ray that is started here. Only units and counts pass through it: pictures are read where they are scored."""

Column = dict[str, Any]


def run_ray(
    task: Task,
    units: Sequence[Unit],
    on_done: Callable[[Done], None],
    stop: Stop,
    workers: int,
    cpus: float,
    gpus: float,
    address: str = "",
) -> None:
    """As :func:`critiq_server.bulk.local.run_here`, with ``workers`` actors of ``cpus`` and ``gpus`` each.

    Args:
        address: of a Ray cluster; empty: a Ray is started on this machine, and ended with the run.

    Raises:
        BulkError: Ray is missing, cannot be reached or lacks what is asked for, or as :func:`run_here`.
    """
    try:
        import ray
    except ModuleNotFoundError:
        raise BulkError("--engine ray needs Ray: pip install 'critiq[ray]'") from None
    ours = not ray.is_initialized()
    if ours:
        _connect(ray, address)
    try:
        _check_room(ray, workers, cpus, gpus, growing=bool(address))
        for column in _answers(task, units, workers, cpus, gpus).iter_rows():
            if column["problem"]:
                raise BulkError(column["problem"])
            if column["done"]:
                on_done(Done.from_json(column["done"]))
    except ray.exceptions.RayError as error:
        raise BulkError(f"Ray failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if ours:
            ray.shutdown()


def _connect(ray: Any, address: str) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    wanted: dict[str, Any] = {"address": address}
    if not address:
        wanted = {"address": "local", "include_dashboard": False, "object_store_memory": _STORE_BYTES}
    try:
        ray.init(**wanted, log_to_driver=False, logging_level="error")
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        raise BulkError(f"cannot reach Ray at {address or 'this machine'}: {error}") from error


def _check_room(ray: Any, workers: int, cpus: float, gpus: float, *, growing: bool) -> None:
    """Ray would wait for ever for what is not there; a cluster may still grow."""
    if growing:
        return
    there = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        if workers * each > there.get(name, 0):
            raise BulkError(
                f"{workers} workers with {each:g} {name}s each need {workers * each:g}, and Ray has "
                f"{there.get(name, 0):g}; lower --workers or --{name.lower()}s"
            )


def _answers(task: Task, units: Sequence[Unit], workers: int, cpus: float, gpus: float) -> Any:
    """A data set of what becomes of units, computed while it is read, in the order in which they are done."""
    import ray.data

    logging.getLogger("ray.data").setLevel("CRITICAL")  # after the import, which sets it; errors are raised too
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = False
    pool = ray.data.ActorPoolStrategy(
        min_size=1,
        max_size=workers,
        initial_size=workers,
        max_tasks_in_flight_per_actor=2 * UNITS_AT_ONCE,
        max_concurrent_calls_per_actor=UNITS_AT_ONCE,
        enable_true_multi_threading=True,
    )
    rows = [{"unit": unit.to_json()} for unit in units]
    return ray.data.from_items(rows, override_num_blocks=min(len(rows), _MOST_BLOCKS)).map_batches(
        Worker,
        fn_constructor_args=(task.to_json(), max(1, int(cpus))),
        batch_size=1,
        compute=pool,
        num_cpus=cpus,
        num_gpus=gpus,
    )


class Worker:
    """One actor: an engine, and a thread that runs its event loop. Called from as many threads as units at once."""

    def __init__(self, task: str, cores: int) -> None:
        self._task = task
        self._cores = cores
        self._opening = threading.Lock()

    def __call__(self, batch: Column) -> Column:
        """Scores the one unit in ``batch``; once a stop is asked for, lets it be."""
        unit = Unit.from_json(str(batch["unit"][0]))
        done = problem = ""
        try:
            with self._opening:
                scorer, loop, output = self._engine
            if output.entry(STOP) is None:
                done = asyncio.run_coroutine_threadsafe(scorer.score(unit), loop).result().to_json()
        except BulkError as error:
            problem = str(error)
        return {"done": [done], "problem": [problem]}

    @cached_property
    def _engine(self) -> tuple[Scorer, asyncio.AbstractEventLoop, Any]:
        task = Task.from_json(self._task)
        configure(task.settings.log)
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, daemon=True).start()
        scorer = Scorer(task, self._cores)
        asyncio.run_coroutine_threadsafe(scorer.open(), loop).result()
        return scorer, loop, place(task.output)
