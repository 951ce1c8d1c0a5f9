"""Works on jobs: a portion at a time, as bulk work, so that whoever waits for an answer goes first."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from critiq.errors import CritiqError, DeadlineExceeded, NotFound, Stopping, TooBusy
from critiq.jobs import Job, JobResult, JobState
from critiq_server.jobs.callbacks import message
from critiq_server.jobs.records import PendingItem, result_bytes
from critiq_server.jobs.settings import JobSettings
from critiq_server.jobs.store import Answer, JobStore
from critiq_server.jobs.thread import Thread
from critiq_server.moderation import Moderation
from critiq_server.telemetry import traces
from critiq_server.telemetry.faults import internal

logger = structlog.get_logger("critiq")

_AFTER_A_FAULT = 5.0
"""Seconds before going on after the database failed, or something else that should not."""
_LONGEST_PAUSE = 30.0
_NO_ROOM = 0.01


class Runner:
    """Scores what is in ``store``.

    Args:
        run: runs the store's methods in the thread that it belongs to.
        on_change: called after a job has ended.
    """

    def __init__(
        self,
        store: JobStore,
        run: Thread,
        settings: JobSettings,
        moderation: Moderation,
        on_change: Callable[[], None],
    ) -> None:
        self._store, self._run, self._settings = store, run, settings
        self._moderation, self._service = moderation, moderation.service
        self._on_change = on_change
        self._taken: dict[str, asyncio.Future[Any] | None] = {}
        """Jobs that are worked on, with what is being scored for them."""
        self._claiming = asyncio.Lock()
        # Most of the server's room is for those who wait: jobs come back for more as soon as any is free.
        self._places = asyncio.Semaphore(max(1, self._service.settings.limits.in_flight // 4))
        self._wake = asyncio.Event()

    def wake(self) -> None:
        """There may be a job."""
        self._wake.set()

    def workers(self) -> list[Coroutine[Any, Any, None]]:
        """To be run until they are cancelled; what is unfinished then is taken up after the next start."""
        return [self._work() for _ in range(self._settings.at_once)]

    async def cancel(self, name: str) -> None:
        """Ends a job, if it has not ended."""
        await self._end(name, "cancelled", "")
        scoring = self._taken.get(name)
        if scoring is not None:
            scoring.cancel()

    async def _work(self) -> None:
        while True:
            self._wake.clear()
            try:
                job = await self._claim()
                if job is None:
                    await self._wake.wait()
                    continue
                self._wake.set()  # there may be another one, for another worker
                try:
                    await self._do(job)
                finally:
                    del self._taken[job.id]
            except Exception as error:
                internal("jobs", error)
                await asyncio.sleep(_AFTER_A_FAULT)

    async def _claim(self) -> Job | None:
        async with self._claiming:
            job = await self._run(self._store.claim, list(self._taken), time.time())
            if job is not None:
                self._taken[job.id] = None
            return job

    async def _do(self, job: Job) -> None:
        if job.policy:
            try:
                self._moderation.policies.get(job.policy, job.policy_version)
            except NotFound as error:  # the server was restarted without it
                await self._end(job.id, "failed", error.message)
                return
        while portion := await self._run(self._store.portion, job.id, self._settings.portion):
            if tries := portion[0].tries:  # nothing is left but what failed before
                await asyncio.sleep(min(_LONGEST_PAUSE, 2.0 ** min(tries, 60)) * random.uniform(0.5, 1.0))  # noqa: S311
            link = "" if traces.tracer is None else await self._run(self._store.trace, job.id)
            with traces.linked("job portion", link, {"critiq.job": job.id, "critiq.items": len(portion)}):
                await self._do_portion(job, portion)
        await self._end(job.id, "done", "")

    async def _do_portion(self, job: Job, portion: Sequence[PendingItem]) -> None:
        scoring = asyncio.ensure_future(asyncio.gather(*(self._score(job, item) for item in portion)))
        self._taken[job.id] = scoring
        try:
            outcomes = await scoring
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return  # the job was cancelled: the store has no further portion of it
        finally:
            self._taken[job.id] = None
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        again = [outcome.position for outcome in outcomes if isinstance(outcome, PendingItem)]
        await self._run(self._store.answer, job.id, answers, again)

    async def _score(self, job: Job, item: PendingItem) -> Answer | PendingItem:
        """The outcome of an item, or the item where another try may help."""
        try:
            async with self._places:
                with traces.span("item"):
                    result = await self._result(job, item)
        except Stopping:
            await asyncio.Event().wait()  # this server does no more; what is not answered is taken up after the start
            raise
        except CritiqError as error:
            if (error.retryable or isinstance(error, DeadlineExceeded)) and item.tries + 1 < self._settings.tries:
                return item
            result = JobResult(item.id, error=error)
        except Exception as error:
            result = JobResult(item.id, error=internal("job", error))
        decision = result.verdict.decision if result.verdict is not None else ""
        return Answer(item.position, result_bytes(result), result.error is not None, decision)

    async def _result(self, job: Job, item: PendingItem) -> JobResult:
        """Waits for room rather than be refused. Raises ``CritiqError``."""
        admission, limits = self._service.admission, self._service.settings.limits
        while True:
            await admission.room(len(item.query.image.data))
            try:
                if not job.policy:
                    result = await self._service.score(item.query, limits.max_timeout_seconds)
                    return JobResult(item.id, result=result)
                verdict = await self._moderation.moderate(
                    item.query, job.policy, job.policy_version, limits.max_timeout_seconds
                )
                return JobResult(item.id, verdict=verdict)
            except TooBusy:  # somebody else was quicker
                await asyncio.sleep(_NO_ROOM)

    async def _end(self, name: str, state: JobState, error: str) -> None:
        ended = await self._run(
            self._store.end, name, state, error, time.time(), lambda job: message(job, self._settings.callbacks)
        )
        if ended is not None:
            await self._run(self._store.empty_log)
            logger.info("job ended", job=name, state=state, items=ended.items, failed=ended.failed)
            self._on_change()
