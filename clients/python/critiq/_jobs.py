"""What both clients do with jobs: the requests, and the methods in a blocking and an asyncio form."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, TypeVar
from urllib.parse import quote

from critiq import jobs
from critiq._base import BaseClient
from critiq._requests import Call, Options, numbered_items
from critiq._retry import Deadline
from critiq.errors import CritiqError, DeadlineExceeded, Unavailable
from critiq.jobs import Job, JobResult, JobResults, JobState
from critiq.v1 import jobs_pb2, scoring_pb2

T = TypeVar("T")

_FIRST_LOOK, _LONGEST_PAUSE = 0.1, 5.0
"""Seconds between looks at a job; they grow."""
_PAGE = 1000


class JobMethods(BaseClient):
    """The blocking client's methods for asynchronous jobs, where the server's settings allow them."""

    def _run(self, call: Call[T], timeout: float | None) -> T:
        raise NotImplementedError  # the client's own

    def submit_job(
        self,
        items: Iterable[Any],
        *,
        policy: str = "",
        policy_version: str = "",
        callback: str = "",
        key: str = "",
        model: str = "",
        version: str = "",
        dimensions: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Job:
        """Hands many pictures over to be scored when nothing more urgent waits; returns before they are.

        Args:
            items: as in :meth:`score_batch`; all of them in one message of 64 MiB at the most.
            policy, policy_version: a moderation policy that decides about each picture; then it says which model and
                dimensions are scored.
            callback: https URL that is told when the job has ended, in the form of Standard Webhooks.
            key: the same key with the same job gives the same job again. Default: one of its own for each call, so that
                a call that is tried again after a broken connection takes no second job on.
            model, version, dimensions: as in :meth:`score_batch`.

        Raises the first error of an item that cannot be sent.
        """
        options = Options(model, version, dimensions)
        return self._run(_submit(items, options, policy, policy_version, callback, key), self._limit(timeout))

    def job(self, id: str, *, timeout: float | None = None) -> Job:
        """How far a job is. Raises :class:`~critiq.errors.NotFound` once the server keeps it no more."""
        return self._run(_get(id), self._limit(timeout))

    def jobs(
        self, state: JobState | None = None, *, limit: int = 100, after: str = "", timeout: float | None = None
    ) -> list[Job]:
        """The jobs that the server keeps, newest first: at most ``limit`` (1000), only those older than ``after``."""
        return self._run(_list(state, limit, after), self._limit(timeout))

    def job_results(self, id: str, *, timeout: float | None = None) -> Iterator[JobResult]:
        """Results so far, in the order of the items; of a job that has ended, all. ``timeout`` is that of each page."""
        start: int | None = 0
        while start is not None:
            page = self._run(_results(id, start), self._limit(timeout))
            yield from page.results
            start = page.next

    def cancel_job(self, id: str, *, timeout: float | None = None) -> Job:
        """Ends a job that has not ended; what is scored stays."""
        return self._run(_cancel(id), self._limit(timeout))

    def wait_job(self, id: str, *, timeout: float | None = None) -> Job:
        """Returns once a job has ended. ``timeout``: seconds; default: no limit.

        A server that restarts meanwhile is waited for. Raises :class:`~critiq.errors.DeadlineExceeded` if the job has
        not ended by then.
        """
        waiting = _Waiting(id, timeout, self.url)
        job = self.job(id, timeout=waiting.remaining())
        while not job.has_ended:
            time.sleep(waiting.pause(job))
            with suppress(Unavailable):  # a server that restarts takes the job up again
                job = self.job(id, timeout=waiting.remaining())
        return job


class AsyncJobMethods(BaseClient):
    """The same for asyncio."""

    async def _run(self, call: Call[T], timeout: float | None) -> T:
        raise NotImplementedError  # the client's own

    async def submit_job(
        self,
        items: Iterable[Any],
        *,
        policy: str = "",
        policy_version: str = "",
        callback: str = "",
        key: str = "",
        model: str = "",
        version: str = "",
        dimensions: Sequence[str] = (),
        timeout: float | None = None,
    ) -> Job:
        """See :meth:`critiq.Client.submit_job`."""
        options = Options(model, version, dimensions)
        call = await asyncio.to_thread(_submit, items, options, policy, policy_version, callback, key)
        return await self._run(call, self._limit(timeout))

    async def job(self, id: str, *, timeout: float | None = None) -> Job:
        """See :meth:`critiq.Client.job`."""
        return await self._run(_get(id), self._limit(timeout))

    async def jobs(
        self, state: JobState | None = None, *, limit: int = 100, after: str = "", timeout: float | None = None
    ) -> list[Job]:
        """See :meth:`critiq.Client.jobs`."""
        return await self._run(_list(state, limit, after), self._limit(timeout))

    async def job_results(self, id: str, *, timeout: float | None = None) -> list[JobResult]:
        """As :meth:`critiq.Client.job_results`, as a list."""
        found: list[JobResult] = []
        start: int | None = 0
        while start is not None:
            page = await self._run(_results(id, start), self._limit(timeout))
            found += page.results
            start = page.next
        return found

    async def cancel_job(self, id: str, *, timeout: float | None = None) -> Job:
        """See :meth:`critiq.Client.cancel_job`."""
        return await self._run(_cancel(id), self._limit(timeout))

    async def wait_job(self, id: str, *, timeout: float | None = None) -> Job:
        """See :meth:`critiq.Client.wait_job`."""
        waiting = _Waiting(id, timeout, self.url)
        job = await self.job(id, timeout=waiting.remaining())
        while not job.has_ended:
            await asyncio.sleep(waiting.pause(job))
            with suppress(Unavailable):
                job = await self.job(id, timeout=waiting.remaining())
        return job


class _Waiting:
    """When to look at a job next."""

    def __init__(self, id: str, timeout: float | None, target: str) -> None:
        self._id, self._timeout = id, timeout
        self._deadline = Deadline(timeout, target)
        self._pause = _FIRST_LOOK

    def remaining(self) -> float | None:
        return self._deadline.remaining()

    def pause(self, job: Job) -> float:
        """Seconds until the next look; raises ``DeadlineExceeded`` if there is none."""
        pause, self._pause = self._pause, min(_LONGEST_PAUSE, 1.5 * self._pause)
        try:
            remaining = self._deadline.remaining()
        except DeadlineExceeded:
            remaining = 0.0
        if remaining is not None and remaining <= pause:
            raise DeadlineExceeded(
                f"job {self._id} has not ended after {self._timeout:g} s: it is {job.state}, with {job.answered} of "
                f"{job.items} items answered"
            )
        return pause


def _submit(
    items: Iterable[Any], options: Options, policy: str, policy_version: str, callback: str, key: str
) -> Call[Job]:
    entries = []
    for name, request in numbered_items(items, options):
        if isinstance(request, CritiqError):
            raise request
        entries.append(scoring_pb2.ScoreItem(id=name, request=request))
    job = jobs_pb2.SubmitJobRequest(
        items=entries,
        policy=policy,
        policy_version=policy_version,
        callback=jobs_pb2.JobCallbackRequest(url=callback) if callback else None,
        idempotency_key=key or secrets.token_hex(16),
    )
    return Call("Jobs/Submit", "POST", "/v1/jobs", job, jobs_pb2.Job, jobs.job_from_proto)


def _get(id: str) -> Call[Job]:
    request = jobs_pb2.GetJobRequest(id=id)
    return Call("Jobs/Get", "GET", _path(id), request, jobs_pb2.Job, jobs.job_from_proto, body=False)


def _list(state: JobState | None, limit: int, after: str) -> Call[list[Job]]:
    request = jobs_pb2.ListJobsRequest(limit=limit, after=after, state=jobs.state_to_proto(state) if state else None)
    params = {"limit": str(limit)} | ({"state": state} if state else {}) | ({"after": after} if after else {})

    def read(response: jobs_pb2.ListJobsResponse) -> list[Job]:
        return [jobs.job_from_proto(job) for job in response.jobs]

    return Call("Jobs/List", "GET", "/v1/jobs", request, jobs_pb2.ListJobsResponse, read, params, body=False)


def _results(id: str, start: int) -> Call[JobResults]:
    request = jobs_pb2.JobResultsRequest(id=id, start=start, limit=_PAGE)
    params = {"start": str(start), "limit": str(_PAGE)}
    path = f"{_path(id)}/results"
    return Call(
        "Jobs/Results", "GET", path, request, jobs_pb2.JobResultsResponse, jobs.results_from_proto, params, body=False
    )


def _cancel(id: str) -> Call[Job]:
    request = jobs_pb2.CancelJobRequest(id=id)
    return Call("Jobs/Cancel", "DELETE", _path(id), request, jobs_pb2.Job, jobs.job_from_proto, body=False)


def _path(id: str) -> str:
    return f"/v1/jobs/{quote(id, safe='')}"
