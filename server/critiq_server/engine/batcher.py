"""Dynamic batching in front of one stage's runtime.

A batch starts at once when the runtime is idle and grows while it is busy; so an idle server adds no waiting, and a
busy one works in batches as large as its load makes them. Everything here runs on the event loop; only ``compute`` runs
in worker threads.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter
from typing import Generic, TypeVar

from critiq.errors import CritiqError, DeadlineExceeded, TooBusy, Unavailable
from critiq_server.engine.demand import Demand, Priority
from critiq_server.engine.workers import Started, Workers
from critiq_server.telemetry import traces

Input = TypeVar("Input")
Output = TypeVar("Output")

BULK_TURN = 4
"""While both priorities wait, every fourth batch is led by bulk work, so neither starves the other."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one batch looked like, for the metrics. Times in seconds."""

    size: int
    queue_seconds: Sequence[float]
    compute_seconds: float


@dataclass(slots=True, eq=False)
class _Item(Generic[Input, Output]):
    input: Input
    bucket: Hashable
    demand: Demand
    queued_at: float
    future: asyncio.Future[Output]
    origin: object | None
    """Who asks, for the traces."""


@dataclass(slots=True, eq=False)
class _Run(Generic[Input, Output]):
    """A batch that is being computed; ``lost`` once nobody waits for it to come back."""

    batch: list[_Item[Input, Output]]
    started: Started | None = None
    watchdog: asyncio.TimerHandle | None = None
    lost: bool = False


@dataclass
class Batcher(Generic[Input, Output]):
    """Gathers single items into batches.

    Args:
        compute: turns inputs of one bucket into as many outputs; an output may be an error, which only its item gets.
            If it raises, every item of the batch gets the error.
        max_batch: items in one batch at the most.
        max_queue: items waiting at the most; beyond it ``submit`` raises ``TooBusy`` with a retry hint.
        workers: batches computed at once.
        max_delay: seconds that an incomplete batch may wait for company although the runtime is idle.
        on_batch: told of every computed batch.
        on_drop: told how many queued items were dropped because nobody wanted them any more.
        pool: threads to share with others; ``None``: as many of its own as it has ``workers``.
        max_compute: seconds after which a batch is taken for lost; its items get ``Unavailable``. 0: never.
        on_lost: told ``True`` of a batch that is lost, ``False`` when one comes back after all.
        attributes: what traces say of its batches.
    """

    compute: Callable[[list[Input]], Sequence[Output | CritiqError]]
    max_batch: int
    max_queue: int
    workers: int = 1
    max_delay: float = 0.0
    on_batch: Callable[[BatchReport], None] = lambda report: None
    on_drop: Callable[[int], None] = lambda count: None
    name: str = "stage"
    pool: Workers | None = None
    max_compute: float = 0.0
    on_lost: Callable[[bool], None] = lambda lost: None
    attributes: traces.Attributes = field(default_factory=dict)
    _queue: list[_Item[Input, Output]] = field(default_factory=list, init=False)
    _busy: int = field(default=0, init=False)
    _batches_since_bulk: int = field(default=0, init=False)
    _rate: float = field(default=0.0, init=False)
    _timer: asyncio.TimerHandle | None = field(default=None, init=False)
    _closed: bool = field(default=False, init=False)
    _in_line: bool = field(default=False, init=False)
    _idle: asyncio.Future[None] | None = field(default=None, init=False)
    _refusal: Callable[[], CritiqError] | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._pool = self.pool or Workers(self.workers, self.name)

    async def submit(self, item: Input, bucket: Hashable, demand: Demand) -> Output:
        """Computes one item in some batch; see :meth:`enqueue`."""
        output: Output = await self.enqueue(item, bucket, demand)
        return output

    def enqueue(self, item: Input, bucket: Hashable, demand: Demand) -> asyncio.Future[Output]:
        """The outcome, some time, of computing one item in some batch.

        Items of different buckets never share a batch. Cancelling the future takes the item out of the queue; if the
        demand's deadline passes while the item is waiting, the future gets ``DeadlineExceeded``.

        Raises:
            TooBusy: the queue is full, or the batcher is closed.
            CritiqError: it is suspended.
        """
        if self._closed:
            raise _unloaded()
        if self._refusal is not None:
            raise self._refusal()
        if len(self._queue) >= self.max_queue:
            self._purge()
        if len(self._queue) >= self.max_queue:
            raise TooBusy(
                f"stage {self.name!r} has {len(self._queue)} items waiting, its limit; try again later",
                retry_after=self.expected_wait(),
            )
        entry = _Item(item, bucket, demand, perf_counter(), self._loop.create_future(), traces.origin())
        self._queue.append(entry)
        self._pump()
        return entry.future

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """Batches that are being computed."""
        return self._busy

    def expected_wait(self) -> float:
        """Seconds until the present queue is worked off, from the recent rate; between 0.05 and 10."""
        if self._rate <= 0:
            return 0.5
        return min(10.0, max(0.05, math.ceil(20 * len(self._queue) / self._rate) / 20))

    async def close(self) -> None:
        """Refuses what is still waiting; returns once running batches have ended."""
        self._closed = True
        self._refuse_queue(_unloaded)
        if self._busy:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.shield(self._idle)
        if self.pool is None:
            self._pool.close()

    def suspend(self, refusal: Callable[[], CritiqError]) -> None:
        """Refuses what waits and what comes, with what ``refusal`` makes, until :meth:`resume`."""
        self._refusal = refusal
        self._refuse_queue(refusal)

    def resume(self) -> None:
        """Takes work again."""
        self._refusal = None

    def _refuse_queue(self, refusal: Callable[[], CritiqError]) -> None:
        for item in self._queue:
            if not item.future.done():
                item.future.set_exception(refusal())
        self._queue.clear()

    def _pump(self) -> None:
        """Starts batches while there is work and an idle worker; stands in line for a thread if there is none."""
        while self._busy < self.workers and self._queue:
            if not self._pool.free:
                self._stand_in_line()
                return
            batch = self._next_batch()
            if not batch:
                return
            self._busy += 1
            run = _Run(batch)
            run.started = self._pool.start(partial(self._run, run), self._finished)
            if self.max_compute:
                run.watchdog = self._loop.call_later(self.max_compute, self._write_off, run)

    def _stand_in_line(self) -> None:
        if not self._in_line:
            self._in_line = True
            self._pool.when_free(self._turn)

    def _turn(self) -> None:
        self._in_line = False
        self._pump()

    def _next_batch(self) -> list[_Item[Input, Output]]:
        self._purge()
        if not self._queue:
            return []
        if self.max_delay > 0 and len(self._queue) < self.max_batch:
            age = perf_counter() - self._queue[0].queued_at
            if age < self.max_delay:
                if self._timer is None or self._timer.cancelled():
                    self._timer = self._loop.call_later(self.max_delay - age, self._delay_over)
                return []
        # Idle workers share what is there: on a machine with several, one large batch would leave the others idle.
        share = math.ceil(len(self._queue) / min(self.workers - self._busy, self._pool.free))
        batch = self._choose(min(self.max_batch, share))
        chosen = set(map(id, batch))
        self._queue = [item for item in self._queue if id(item) not in chosen]
        return batch

    def _choose(self, size: int) -> list[_Item[Input, Output]]:
        by_priority = sorted(self._queue, key=lambda item: item.demand.priority)  # stable: oldest first within each
        most, least = by_priority[0].demand.priority, by_priority[-1].demand.priority
        if most != least:
            self._batches_since_bulk += 1
            if self._batches_since_bulk >= BULK_TURN:
                self._batches_since_bulk = 0
                bulk = [item for item in by_priority if item.demand.priority is Priority.BULK]
                by_priority = bulk + [item for item in by_priority if item.demand.priority is not Priority.BULK]
        bucket = by_priority[0].bucket
        return [item for item in by_priority if item.bucket == bucket][:size]

    def _purge(self) -> None:
        """Drops items that nobody waits for any more, before they cost any compute."""
        now = self._loop.time()
        kept = []
        for item in self._queue:
            if item.future.done():
                continue
            if item.demand.deadline <= now:
                item.future.set_exception(
                    DeadlineExceeded("the deadline passed while the request was waiting its turn")
                )
                continue
            kept.append(item)
        if len(kept) != len(self._queue):
            self.on_drop(len(self._queue) - len(kept))
            self._queue = kept

    def _delay_over(self) -> None:
        self._timer = None
        self._pump()

    def _run(
        self, run: _Run[Input, Output]
    ) -> tuple[_Run[Input, Output], Sequence[Output | CritiqError], float, float]:
        """In a worker thread: never raises, so that every item gets its outcome."""
        batch = run.batch
        started = perf_counter()  # not the loop's time, which uvloop rounds to milliseconds
        outputs: Sequence[Output | CritiqError]
        try:
            with traces.batch(self.name, self.attributes, batch):
                outputs = self.compute([item.input for item in batch])
            if len(outputs) != len(batch):
                raise RuntimeError(f"{len(batch)} inputs came out as {len(outputs)} outputs")
        except Exception as error:
            failure = error if isinstance(error, CritiqError) else _runtime_failure(self.name, error)
            outputs = [failure] * len(batch)
        return run, outputs, started, perf_counter()

    def _write_off(self, run: _Run[Input, Output]) -> None:
        """Lets go of a batch that does not come back, and of its thread, which cannot be stopped."""
        run.lost = True
        for item in run.batch:
            if not item.future.done():
                message = f"stage {self.name!r} gave nothing within {self.max_compute:g} s; try again"
                item.future.set_exception(Unavailable(message, retry_after=1.0))
        self._busy -= 1
        self.on_lost(True)
        self._after_run()
        if run.started is not None:
            self._pool.write_off(run.started)  # last: it calls those who stand in line for a thread

    def _finished(self, done: tuple[_Run[Input, Output], Sequence[Output | CritiqError], float, float]) -> None:
        run, outputs, started, ended = done
        if run.lost:
            self.on_lost(False)
            return
        if run.watchdog is not None:
            run.watchdog.cancel()
        self._busy -= 1
        batch = run.batch
        for item, output in zip(batch, outputs, strict=True):
            if item.future.done():
                continue
            if isinstance(output, CritiqError):
                item.future.set_exception(output)
            else:
                item.future.set_result(output)
        rate = len(batch) * self.workers / max(ended - started, 1e-6)
        self._rate = rate if self._rate == 0 else 0.8 * self._rate + 0.2 * rate
        self._after_run()
        self.on_batch(BatchReport(len(batch), [started - item.queued_at for item in batch], ended - started))

    def _after_run(self) -> None:
        if self._queue:
            self._stand_in_line()  # Others may have waited longer.
        if self._idle is not None and not self._busy and not self._idle.done():
            self._idle.set_result(None)


def _unloaded() -> TooBusy:
    return TooBusy("the model was unloaded; try again", retry_after=0.1)


def _runtime_failure(name: str, error: Exception) -> CritiqError:
    from critiq_server.telemetry.faults import internal

    return internal(f"stage {name} failed", error)
