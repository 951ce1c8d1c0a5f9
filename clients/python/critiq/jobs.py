"""Asynchronous jobs as Python values; the comments in ``proto/critiq/v1/jobs.proto`` are the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard, cast, get_args

from critiq import wire, wire_verdicts
from critiq.errors import CritiqError
from critiq.types import ItemResult, ScoreResult, Verdict
from critiq.v1 import jobs_pb2

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
CallbackState = Literal["pending", "delivered", "refused", "given_up"]

_STATE = {name: number for number, name in enumerate(get_args(JobState), start=1)}
_CALLBACK_STATE = {name: number for number, name in enumerate(get_args(CallbackState), start=1)}


@dataclass(frozen=True, slots=True)
class JobCallback:
    """What became of a job's callback. ``next_attempt``: Unix time in seconds; ``None`` if no try is due."""

    host: str
    state: CallbackState
    attempts: int = 0
    last_error: str = ""
    next_attempt: float | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """How far a job is: ``answered`` of ``items`` have an outcome, ``failed`` of those an error. Times: Unix, seconds.

    ``decisions``: how often its policy has decided what so far.
    """

    id: str
    state: JobState
    items: int
    answered: int
    failed: int
    created: float
    started: float | None = None
    finished: float | None = None
    policy: str = ""
    policy_version: str = ""
    error: str = ""
    callback: JobCallback | None = None
    decisions: Mapping[str, int] = field(default_factory=dict)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will happen to its results."""
        return self.state not in ("queued", "running")


@dataclass(frozen=True, slots=True)
class JobResult:
    """The answer to one item of a job: ``result``, in a job with a policy ``verdict`` instead, or ``error`` is set."""

    id: str
    result: ScoreResult | None = None
    verdict: Verdict | None = None
    error: CritiqError | None = None


@dataclass(frozen=True, slots=True)
class JobResults:
    """One page of results. ``next``: position at which the next page begins; ``None`` if there is no more (yet)."""

    results: tuple[JobResult, ...]
    next: int | None = None


def is_job_state(text: str) -> TypeGuard[JobState]:
    return text in _STATE


def state_to_proto(state: JobState) -> jobs_pb2.JobState:
    return cast(jobs_pb2.JobState, _STATE[state])


def state_from_proto(number: int) -> JobState:
    return cast(JobState, _name(_STATE, number))


def job_to_proto(job: Job) -> jobs_pb2.Job:
    return jobs_pb2.Job(
        id=job.id,
        state=state_to_proto(job.state),
        items=job.items,
        answered=job.answered,
        failed=job.failed,
        policy=job.policy,
        policy_version=job.policy_version,
        created=job.created,
        started=job.started,
        finished=job.finished,
        error=job.error,
        callback=_callback_to_proto(job.callback) if job.callback is not None else None,
        decisions=job.decisions,
    )


def job_from_proto(message: jobs_pb2.Job) -> Job:
    return Job(
        id=message.id,
        state=state_from_proto(message.state),
        items=message.items,
        answered=message.answered,
        failed=message.failed,
        policy=message.policy,
        policy_version=message.policy_version,
        created=message.created,
        started=message.started if message.HasField("started") else None,
        finished=message.finished if message.HasField("finished") else None,
        error=message.error,
        callback=_callback_from_proto(message.callback) if message.HasField("callback") else None,
        decisions=dict(sorted(message.decisions.items())),  # a map of protobuf has no order
    )


def result_to_proto(result: JobResult) -> jobs_pb2.JobResult:
    if result.result is not None:
        return jobs_pb2.JobResult(id=result.id, response=wire.result_to_proto(result.result))
    if result.verdict is not None:
        return jobs_pb2.JobResult(id=result.id, verdict=wire_verdicts.verdict_to_proto(result.verdict))
    item = wire.item_to_proto(ItemResult(result.id, error=result.error))
    return jobs_pb2.JobResult(id=result.id, error=item.error)


def result_from_proto(message: jobs_pb2.JobResult) -> JobResult:
    if message.WhichOneof("outcome") == "response":
        return JobResult(message.id, result=wire.result_from_proto(message.response))
    if message.WhichOneof("outcome") == "verdict":
        return JobResult(message.id, verdict=wire_verdicts.verdict_from_proto(message.verdict))
    return JobResult(message.id, error=wire.error_from_proto(message.error))


def results_to_proto(page: JobResults) -> jobs_pb2.JobResultsResponse:
    return jobs_pb2.JobResultsResponse(results=[result_to_proto(entry) for entry in page.results], next=page.next)


def results_from_proto(message: jobs_pb2.JobResultsResponse) -> JobResults:
    return JobResults(
        tuple(result_from_proto(entry) for entry in message.results),
        message.next if message.HasField("next") else None,
    )


def _callback_to_proto(callback: JobCallback) -> jobs_pb2.JobCallback:
    return jobs_pb2.JobCallback(
        host=callback.host,
        state=cast(jobs_pb2.JobCallbackState, _CALLBACK_STATE[callback.state]),
        attempts=callback.attempts,
        last_error=callback.last_error,
        next_attempt=callback.next_attempt,
    )


def _callback_from_proto(message: jobs_pb2.JobCallback) -> JobCallback:
    return JobCallback(
        host=message.host,
        state=_name(_CALLBACK_STATE, message.state),
        attempts=message.attempts,
        last_error=message.last_error,
        next_attempt=message.next_attempt if message.HasField("next_attempt") else None,
    )


def _name(table: dict[str, int], number: int) -> Any:
    return next((name for name, value in table.items() if value == number), next(iter(table)))
