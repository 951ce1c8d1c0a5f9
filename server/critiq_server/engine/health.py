"""Whether a served model computes: suspends it when it does not, and brings it back when it does again.

A picture can make a sound model fail, and callers choose the pictures. So failures alone never suspend a model: the
golden record decides, which it computed when it was loaded.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Protocol

import structlog

from critiq.errors import CritiqError, Unavailable
from critiq_server.bundles.loaded import BrokenBundle
from critiq_server.engine.computing import FaultKind
from critiq_server.runtime.fault_settings import FaultSettings
from critiq_server.telemetry.faults import internal

logger = structlog.get_logger("critiq")


class Suspendable(Protocol):
    """What stands in front of a stage."""

    def suspend(self, refusal: Callable[[], CritiqError]) -> None: ...

    def resume(self) -> None: ...


class ModelHealth:
    """The health of one loaded model. Made and used on the event loop, but for what says otherwise.

    Args:
        name: of the model, for the log and for callers.
        settings: when to suspend.
        probe: computes the golden record, or raises; blocks, and may do so for ever.
        on_fault: told of every failure: stage and kind.
        on_change: called when the model is suspended, and when it is back.
    """

    def __init__(
        self,
        name: str,
        settings: FaultSettings,
        probe: Callable[[], None],
        on_fault: Callable[[str, FaultKind], None],
        on_change: Callable[[], None],
    ) -> None:
        self._name = name
        self._settings = settings
        self._probe = probe
        self._on_fault = on_fault
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._in_a_row: Counter[str] = Counter()
        self._lost = 0
        self._probing: asyncio.Future[str] | None = None
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        self.queues: Collection[Suspendable] = ()
        self.reason = ""
        """Why the model is suspended; empty while it is not."""

    def batch_ended(self, stage: str, faults: Sequence[FaultKind], sound: bool) -> None:
        """What became of a batch. From any thread."""
        if faults or (sound and self._in_a_row[stage]):
            self._loop.call_soon_threadsafe(self._note, stage, faults, sound)

    def batch_lost(self, stage: str, lost: bool) -> None:
        """A batch did not come back in time; or, with ``lost`` false, it did after all."""
        self._lost += 1 if lost else -1
        if lost:
            self._on_fault(stage, "stalled")
            self._suspend(f"stage {stage!r} gave nothing within {self._settings.max_compute_seconds:g} s")
            self._look()

    def close(self) -> None:
        """Stops looking after the model."""
        self._closed = True
        if self._looking is not None:
            self._looking.cancel()

    def _note(self, stage: str, faults: Sequence[FaultKind], sound: bool) -> None:
        for kind in faults:
            self._on_fault(stage, kind)
        self._in_a_row[stage] = 0 if sound else self._in_a_row[stage] + 1
        if self._in_a_row[stage] >= self._settings.suspend_after:
            self._look()

    def _look(self) -> None:
        if (self._looking is None or self._looking.done()) and not self._closed:
            self._looking = asyncio.create_task(self._until_sound())

    async def _until_sound(self) -> None:
        while problem := await self._problem():
            self._suspend(problem)
            await asyncio.sleep(self._settings.probe_seconds)
        self._in_a_row.clear()
        if self.reason:
            self.reason = ""
            for queue in self.queues:
                queue.resume()
            logger.info("model computes again", model=self._name)
            self._on_change()

    def _suspend(self, reason: str) -> None:
        if self._closed or self.reason:
            return
        self.reason = reason
        logger.error("model suspended", model=self._name, reason=reason)
        for queue in self.queues:
            queue.suspend(self._refusal)
        self._on_change()

    def _refusal(self) -> CritiqError:
        return Unavailable(
            f"model {self._name!r} is suspended ({self.reason}) until it computes its golden record again; ask another "
            "server, or try again later",
            retry_after=self._settings.probe_seconds,
        )

    async def _problem(self) -> str:
        """What keeps the model from computing; empty if nothing does."""
        if self._lost >= self._settings.suspend_after:
            # Each holds a thread, and more would be lost the same way.
            return f"{self._lost} batches have not come back"
        if self._probing is None:
            self._probing = self._loop.create_future()
            threading.Thread(target=self._run_probe, args=(self._probing,), name="critiq-probe", daemon=True).start()
        limit = self._settings.max_compute_seconds or None
        try:
            problem = await asyncio.wait_for(asyncio.shield(self._probing), limit)
        except TimeoutError:  # the thread is waited for again: never more than one is lost to probing
            return f"its golden record was not computed within {limit:g} s"
        self._probing = None
        return problem

    def _run_probe(self, outcome: asyncio.Future[str]) -> None:
        try:
            self._probe()
            problem = ""
        except BrokenBundle as error:
            problem = str(error)
        except Exception as error:  # whatever a runtime raises; its detail is for the log, once
            problem = self.reason or internal("computing the golden record", error).message
        try:
            self._loop.call_soon_threadsafe(partial(_settle, outcome, problem))
        except RuntimeError:  # the event loop is closed: nobody waits any more
            return


def _settle(outcome: asyncio.Future[str], problem: str) -> None:
    if not outcome.done():
        outcome.set_result(problem)
