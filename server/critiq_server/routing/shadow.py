"""Shadows: a candidate scores what was answered once more, when nothing else wants the machine.

Nothing here can delay or fail an answer: what is offered waits in a bounded queue, outside the room that callers have,
and is scored as bulk work while few of their pictures are under way and a thread is left beside the one it takes.
Beyond that, pictures are left out and counted.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import deque
from collections.abc import Callable, Collection
from contextvars import Context
from dataclasses import dataclass

import structlog

from critiq.aliases import Alias, ShadowReport
from critiq.errors import CritiqError, FailedPrecondition, NotFound
from critiq.types import ScoreResult
from critiq_server.answering import Answering
from critiq_server.engine.admission import Admission
from critiq_server.engine.demand import Call, Priority
from critiq_server.images.source import ImageSource
from critiq_server.registry import Registry
from critiq_server.routing.agreement import Agreement
from critiq_server.routing.settings import ShadowSettings
from critiq_server.scoring.policies import Policy
from critiq_server.settings import Settings
from critiq_server.telemetry.faults import internal
from critiq_server.wording import quoted

logger = structlog.get_logger("critiq")

_LOOK_SECONDS = 0.05
"""How often it is looked whether there is time for shadows."""
_QUIET_SECONDS = 60.0
"""Between two lines about failures in the log."""


@dataclass(frozen=True, slots=True)
class _Offer:
    agreement: Agreement
    image: ImageSource
    prompt: str
    result: ScoreResult
    since: float


class Shadows:
    """The shadows of one server. Used from the event loop only.

    Args:
        answering: scores; told to offer here what it has answered.
        admission: says how much is under way for callers.
        has_time: whether the machine could compute something more for a caller beside a shadow.
        policies: tried on the scores of both.
        count: told (alias, ``scored``, ``dropped`` or ``failed``) of every picture that was offered.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        answering: Answering,
        admission: Admission,
        has_time: Callable[[], bool] = lambda: True,
        policies: Collection[Policy] = (),
        count: Callable[[str, str], None] = lambda alias, outcome: None,
    ) -> None:
        self._settings: ShadowSettings = settings.models.shadow
        self._limits = settings.limits
        self._registry, self._answering, self._admission = registry, answering, admission
        self._has_time = has_time
        self._policies = policies
        self._count = count
        self._agreements: dict[str, Agreement] = {}
        self._queue: deque[_Offer] = deque()
        self._queued_bytes = 0
        self._working: set[asyncio.Task[None]] = set()
        self._closed = False
        self._logged_at = float("-inf")
        answering.on_answer = self.offer

    def changed(self, name: str, alias: Alias | None) -> None:
        """The alias is like this now, or gone: what was found before is forgotten, and what waits."""
        self._agreements.pop(name, None)
        if alias is not None and alias.shadow is not None:
            settings = self._settings
            self._agreements[name] = Agreement(alias, self._policies, settings.thresholds, settings.window)

    def reports(self) -> list[ShadowReport]:
        """Of every alias that has a shadow. May be called from any thread."""
        return [agreement.report() for agreement in tuple(self._agreements.values())]

    def agreement(self, name: str) -> Agreement:
        """Of an alias. Raises ``NotFound`` if there is none, ``FailedPrecondition`` if it has no shadow."""
        agreement = self._agreements.get(name)
        if agreement is not None:
            return agreement
        if self._registry.aliases.get(name) is None:
            raise NotFound(f"there is no alias {quoted(name)}", field="name")
        raise FailedPrecondition(f"the alias {name!r} has no shadow; give it one to compare with", field="name")

    def offer(self, alias: str, image: ImageSource, prompt: str, result: ScoreResult) -> None:
        """Takes an answer to compare with, if the alias has a shadow, chance wants it and there is room."""
        agreement = self._agreements.get(alias)
        if agreement is None or random.random() * 100 >= agreement.candidate.percent:  # noqa: S311
            return
        size = len(image.data)
        fits = len(self._queue) < self._settings.queue and self._queued_bytes + size <= self._settings.queue_mb * 2**20
        if self._closed or not fits:
            self._drop(agreement)
            return
        self._queue.append(_Offer(agreement, image, prompt, result, time.monotonic()))
        self._queued_bytes += size
        # One that has just found nothing more is still among them: its end is told a moment later.
        if sum(not task.done() for task in self._working) < self._settings.at_once:
            # Not in the caller's context: nothing of it, such as its trace, is of later pictures.
            task = asyncio.create_task(self._work(), context=Context())
            self._working.add(task)
            task.add_done_callback(self._working.discard)

    async def close(self) -> None:
        """Drops what waits and what is under way."""
        self._closed = True
        self._queue.clear()
        tasks = list(self._working)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        """Scores what waits, until nothing does."""
        while self._queue:
            if self._is_busy():
                self._drop_old()
                await asyncio.sleep(_LOOK_SECONDS)
                continue
            offer = self._queue.popleft()
            self._queued_bytes -= len(offer.image.data)
            if self._agreements.get(offer.agreement.alias) is offer.agreement:
                await self._compare(offer)

    def _is_busy(self) -> bool:
        limit = max(1, int(self._settings.busy_share * self._limits.in_flight))
        return self._admission.items > limit or not self._has_time()

    def _drop_old(self) -> None:
        oldest = time.monotonic() - self._settings.wait_seconds
        while self._queue and self._queue[0].since < oldest:
            offer = self._queue.popleft()
            self._queued_bytes -= len(offer.image.data)
            self._drop(offer.agreement)

    def _drop(self, agreement: Agreement) -> None:
        agreement.dropped += 1
        self._count(agreement.alias, "dropped")

    async def _compare(self, offer: _Offer) -> None:
        agreement, candidate = offer.agreement, offer.agreement.candidate
        seconds = self._limits.timeout_seconds
        try:
            call = Call(asyncio.get_running_loop().time() + seconds, Priority.BULK)
            async with asyncio.timeout(seconds):
                with self._registry.lease(candidate.model, candidate.version) as served:
                    result = await self._answering.shadow(served, offer.result, offer.image, offer.prompt, call)
            agreement.add(offer.result, result)
            self._count(agreement.alias, "scored")
        except CritiqError as error:
            self._failed(agreement, error.message)
        except TimeoutError:
            self._failed(agreement, f"no score within {seconds:g} s")
        except Exception as error:
            self._failed(agreement, internal("shadow", error).message)

    def _failed(self, agreement: Agreement, reason: str) -> None:
        agreement.failed += 1
        agreement.last_failure = reason
        self._count(agreement.alias, "failed")
        if time.monotonic() - self._logged_at >= _QUIET_SECONDS:
            self._logged_at = time.monotonic()
            logger.warning(
                "a shadow does not score",
                alias=agreement.alias,
                candidate=str(agreement.candidate),
                failed=agreement.failed,
                why=reason,
            )
