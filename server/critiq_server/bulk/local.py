"""Workers on this machine: the engine in this process, or several processes with an engine each."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.scorer import Scorer
from critiq_server.bulk.task import Task
from critiq_server.bulk.units import Done, Unit

UNITS_AT_ONCE = 2
"""Units that a worker has at a time: while the last pictures of one are scored, the other fills the batches."""

CRASHES = 3
"""A unit that was under way when so many workers ended is not tried again."""

_LINE = 2**24


class Stop(Protocol):
    """Whether somebody has asked to stop."""

    @property
    def requested(self) -> bool: ...


def run_here(task: Task, units: Sequence[Unit], on_done: Callable[[Done], None], stop: Stop) -> None:
    """Scores ``units`` with an engine in this process; begins no more once ``stop`` is requested.

    Raises:
        BulkError: the model cannot be loaded, or storage does not work.
    """
    _run(_here(task, units, on_done, stop))


def run_processes(task: Task, units: Sequence[Unit], on_done: Callable[[Done], None], stop: Stop, workers: int) -> None:
    """As :func:`run_here`, with ``workers`` processes that share the cores of this one."""
    _run(_Crew(task, units, on_done, stop).run(workers))


def _run(work: Coroutine[Any, Any, None]) -> None:
    if sys.platform == "win32":
        asyncio.run(work)
    else:
        import uvloop

        uvloop.run(work)


async def _here(task: Task, units: Sequence[Unit], on_done: Callable[[Done], None], stop: Stop) -> None:
    scorer = Scorer(task)
    await scorer.open()
    left = deque(units)

    async def consume() -> None:
        while left and not stop.requested:
            on_done(await scorer.score(left.popleft()))

    try:
        await _all(consume() for _ in range(UNITS_AT_ONCE))
    finally:
        await scorer.close()


async def _all(work: Any) -> None:
    """Waits for all; the first error ends the others and is raised as it is."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for one in tasks:
            one.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Crew:
    """Processes that take units from one queue."""

    def __init__(self, task: Task, units: Sequence[Unit], on_done: Callable[[Done], None], stop: Stop) -> None:
        self._task = task
        self._left = deque(units)
        self._on_done = on_done
        self._stop = stop
        self._crashes: dict[int, int] = {}

    async def run(self, workers: int) -> None:
        cores = _shares(workers)
        await _all(self._worker(cores[number]) for number in range(min(workers, len(self._left))))

    async def _worker(self, cores: Sequence[int]) -> None:
        """One process after the other, until nothing is left: a process that ends is replaced."""
        while self._left and not self._stop.requested:
            under_way: dict[int, Unit] = {}
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "critiq_server.bulk.worker"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # an interrupt at the terminal is for this process alone
                limit=_LINE,
            )
            _pin(process.pid, cores)
            try:
                await self._serve(process, under_way)
            finally:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
            self._take_back(under_way)

    async def _serve(self, process: asyncio.subprocess.Process, under_way: dict[int, Unit]) -> None:
        """Hands units to a process until none is left or it ends."""
        told, heard = process.stdin, process.stdout
        if told is None or heard is None:
            raise RuntimeError("the worker has no pipes")
        with suppress(ConnectionError):  # it has ended, which the loop below sees
            await _tell(told, self._task.to_json())
            async for line in heard:
                message = json.loads(line)
                if problem := message.get("refused") or message.get("failed"):
                    raise BulkError(problem)
                if "done" in message:
                    done = Done.from_json(message["done"])
                    del under_way[done.unit]
                    self._on_done(done)
                while self._left and len(under_way) < UNITS_AT_ONCE and not self._stop.requested:
                    unit = self._left.popleft()
                    under_way[unit.number] = unit
                    await _tell(told, unit.to_json())
                if not under_way:
                    return

    def _take_back(self, under_way: dict[int, Unit]) -> None:
        for unit in under_way.values():
            crashes = self._crashes[unit.number] = self._crashes.get(unit.number, 0) + 1
            if crashes == CRASHES:
                last = unit.first + unit.rows - 1
                raise BulkError(
                    f"{CRASHES} workers ended while they had rows {unit.first} to {last} of {unit.shard}: a picture "
                    "there may take more memory than there is, or crash a decoder; leave it out, or lower --batch"
                )
        self._left.extendleft(under_way.values())


async def _tell(stream: asyncio.StreamWriter, line: str) -> None:
    stream.write(line.encode() + b"\n")
    await stream.drain()


def _shares(workers: int) -> list[list[int]]:
    """The cores of this process, dealt out to workers; each has all of them where there are fewer than workers."""
    if not hasattr(os, "sched_getaffinity"):
        return [[] for _ in range(workers)]
    cores = sorted(os.sched_getaffinity(0))
    return [cores[number::workers] or cores for number in range(workers)]


def _pin(process: int, cores: Sequence[int]) -> None:
    """Before the worker counts its cores, which it does once it has read its task."""
    if cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process, cores)
