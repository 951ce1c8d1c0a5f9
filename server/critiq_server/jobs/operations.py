"""What can be done with jobs, free of any transport."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar, get_args

from critiq.errors import InvalidArgument, NotFound, PermissionDenied, Stopping, TooLarge, Unavailable
from critiq.jobs import Job, JobResults, JobState
from critiq_server.jobs.callbacks import FIELD, Callbacks
from critiq_server.jobs.outbox import Outbox
from critiq_server.jobs.records import NewJob, result_of, stored
from critiq_server.jobs.runner import Runner
from critiq_server.jobs.settings import JobSettings
from critiq_server.jobs.store import JobStore, Totals
from critiq_server.jobs.thread import Thread
from critiq_server.jobs.turn import Turn
from critiq_server.moderation import Moderation
from critiq_server.outbound.connect import Outbound
from critiq_server.queries import Item, Query, Target, check_unique
from critiq_server.security.limits import caller
from critiq_server.telemetry import traces
from critiq_server.telemetry.faults import internal
from critiq_server.telemetry.metrics import Metrics
from critiq_server.wording import quoted

P = ParamSpec("P")
T = TypeVar("T")

PAGE, LARGEST_PAGE = 100, 1000
_LONGEST_KEY = 255
_LONGEST_ID = 1024
"""Ids stay as long as the results, which no limit on bytes counts."""
_FORGET_EVERY = 60.0
_LOOK_EVERY = 0.5
"""Seconds between looks for what another process has put into the file."""


class Jobs:
    """The jobs of one server. Methods raise only ``critiq.errors``; all but :meth:`open` and :meth:`close` raise
    ``PermissionDenied`` where the settings name no file.

    Args:
        shared: whether several processes take jobs on in one file; one of them works on them.
    """

    def __init__(
        self, settings: JobSettings, moderation: Moderation, metrics: Metrics, *, shared: bool = False
    ) -> None:
        self._settings, self._moderation, self._metrics = settings, moderation, metrics
        self._shared = shared
        self._outbound = Outbound(settings.callbacks, "jobs.callbacks")
        self._totals = Totals({}, 0, None)
        self._tasks: list[asyncio.Task[None]] = []
        self._is_open = False
        for state in get_args(JobState):
            metrics.jobs.labels(state).set_function(partial(self._count_of, state))
        metrics.jobs_bytes.set_function(lambda: self._totals.waiting_bytes)
        metrics.jobs_oldest.set_function(self._oldest_age)

    async def open(self) -> None:
        """Opens the file. Raises ``JobStoreError`` if it cannot be used."""
        if self._settings.path is None:
            return
        self._thread = Thread()
        try:
            self._store = await self._thread(JobStore, self._settings.path, self._settings, shared=self._shared)
        except BaseException:
            self._thread.close()
            raise
        self._runner = Runner(self._store, self._thread, self._settings, self._moderation, self._on_change)
        self._callbacks = Callbacks(
            Outbox(self._store),
            self._thread,
            self._settings.callbacks,
            self._outbound,
            lambda outcome: self._metrics.callbacks.labels(outcome).inc(),
        )
        self._is_open = True

    def start(self) -> None:
        """Begins to work: on what was left over, too."""
        if not self._is_open:
            return
        self._tasks = [asyncio.create_task(self._keep_house())]
        if self._shared and self._settings.path is not None:
            self._tasks.append(asyncio.create_task(self._work_in_turn(Turn(self._settings.path))))
        else:
            self._tasks += [asyncio.create_task(loop) for loop in self._work()]

    async def close(self) -> None:
        """Stops working and closes the file. What is unfinished is taken up after the next start."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._is_open:
            self._is_open = False
            await self._thread(self._store.close)
            self._thread.close()

    async def submit(
        self, items: Sequence[Item], policy: str = "", policy_version: str = "", callback: str = "", key: str = ""
    ) -> Job:
        """Takes a job on.

        Raises:
            InvalidArgument: no items, duplicated ids, a callback or a key that cannot be used.
            TooLarge: more items or bytes than a job may have.
            NotFound: no such policy.
            PermissionDenied: callbacks to that host are not allowed.
            FailedPrecondition: the key is another job's.
            TooBusy: there is no room for it now.
        """
        self._check_open()
        self._check_items(items)
        if len(key) > _LONGEST_KEY:
            raise InvalidArgument(f"{len(key)} characters, the limit is {_LONGEST_KEY}", field="idempotency_key")
        asked = (policy, policy_version)
        if policy or policy_version:
            chosen = self._moderation.policies.get(policy, policy_version)
            policy, policy_version = chosen.name, chosen.version
            _check_no_target(items)
        if callback:
            self._check_callback(callback)
        trace = traces.headers().get("traceparent", "")
        owner = caller.get() or ""
        new = NewJob([stored(item) for item in items], policy, policy_version, asked, callback, key, owner, trace)
        if new.size > self._settings.max_bytes:
            raise TooLarge(
                f"the job has {new.size:,} bytes, the limit is {self._settings.max_bytes:,}; send several",
                field="items",
            )
        job = await self._do(self._store.submit, new, time.time())
        self._runner.wake()
        return job

    async def get(self, name: str) -> Job:
        """One job; raises ``NotFound``, for jobs of other callers' API keys too."""
        self._check_open()
        job = await self._do(self._store.get, name, caller.get())
        if job is None:
            raise NotFound(
                f"there is no job {quoted(name)}; jobs are kept for {self._settings.keep_seconds:g} s after their end",
                field="id",
            )
        return job

    async def recent(self, state: JobState | None = None, limit: int = 0, after: str = "") -> list[Job]:
        """Those that are kept, newest first; see ``ListJobsRequest``."""
        self._check_open()
        if after:
            await self.get(after)
        return await self._do(self._store.recent, state, _page(limit), after, caller.get())

    async def results(self, name: str, start: int = 0, limit: int = 0) -> JobResults:
        """A page of results; raises ``NotFound``; see ``JobResultsRequest``."""
        await self.get(name)
        found, following = await self._do(self._store.results, name, start, _page(limit))
        return JobResults(tuple(result_of(entry) for entry in found), following)

    async def cancel(self, name: str) -> Job:
        """Ends a job unless it has ended; raises ``NotFound``."""
        await self.get(name)
        with _as_unavailable():
            await self._runner.cancel(name)
        return await self.get(name)

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        return [*self._runner.workers(), self._callbacks.deliver()]

    async def _work_in_turn(self, turn: Turn) -> None:
        while True:
            try:
                await turn.take()
                break
            except OSError as error:  # too many open files, say; another time
                internal("taking turns at jobs", error)
                await asyncio.sleep(_FORGET_EVERY)
        working = asyncio.gather(*self._work())
        try:
            while not working.done():
                await asyncio.sleep(_LOOK_EVERY)
                self._runner.wake()
                self._callbacks.wake()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
            turn.give()

    def _check_open(self) -> None:
        if self._settings.path is None:
            raise PermissionDenied("this server takes no jobs; its setting jobs.path names no file to keep them in")
        if not self._is_open:
            raise Stopping("the server is stopping; ask again once it has started", retry_after=1.0)

    def _check_items(self, items: Sequence[Item]) -> None:
        if not items:
            raise InvalidArgument("there is nothing to score; send at least one picture", field="items")
        if len(items) > self._settings.max_items:
            raise TooLarge(
                f"{len(items)} pictures in one job, the limit is {self._settings.max_items}; send several jobs",
                field="items",
            )
        check_unique([item.id for item in items])
        for position, item in enumerate(items):
            if len(item.id) > _LONGEST_ID:
                raise InvalidArgument(
                    f"{len(item.id)} characters, the limit in a job is {_LONGEST_ID}", field=f"items[{position}].id"
                )

    def _check_callback(self, url: str) -> None:
        if not self._outbound.enabled:
            raise PermissionDenied(
                "this server sends no callbacks; poll the job, or have its setting jobs.callbacks.hosts name the hosts "
                "that it may send to",
                field=FIELD,
            )
        self._outbound.check(url, FIELD)

    async def _do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        with _as_unavailable():
            return await self._thread(function, *args, **kwargs)

    def _on_change(self) -> None:
        self._callbacks.wake()

    async def _count(self) -> None:
        self._totals = await self._do(self._store.totals)

    async def _keep_house(self) -> None:
        """Forgets what was kept long enough, and counts for the metrics."""
        forget_at = 0.0
        while True:
            try:
                await self._count()
                if time.monotonic() >= forget_at:
                    await self._do(self._store.forget, time.time() - self._settings.keep_seconds)
                    forget_at = time.monotonic() + min(_FORGET_EVERY, self._settings.keep_seconds / 2)
            except Exception as error:
                internal("jobs", error)
            await asyncio.sleep(1.0)

    def _count_of(self, state: JobState) -> int:
        return self._totals.by_state.get(state, 0)

    def _oldest_age(self) -> float:
        return max(0.0, time.time() - self._totals.oldest) if self._totals.oldest is not None else 0.0


@contextmanager
def _as_unavailable() -> Iterator[None]:
    """A full disk, say, is no fault of the caller, and may pass."""
    try:
        yield
    except sqlite3.Error as error:
        fault = internal("jobs", error)
        raise Unavailable(f"the file of the jobs cannot be used now: {fault.message}") from error


def _check_no_target(items: Sequence[Item]) -> None:
    for position, item in enumerate(items):
        if isinstance(item.query, Query) and item.query.target != Target():
            raise InvalidArgument(
                "the policy says which model and dimensions are scored; leave them out, or leave the policy out",
                field=f"items[{position}].target",
            )


def _page(limit: int) -> int:
    if limit > LARGEST_PAGE:
        raise InvalidArgument(f"{limit} in one page, the limit is {LARGEST_PAGE}", field="limit")
    return limit or PAGE
