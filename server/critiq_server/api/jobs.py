"""Faces of the jobs: REST under ``/v1/jobs``, and the service ``critiq.v1.Jobs``. They decide nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field

from critiq import jobs as wire_jobs
from critiq import types
from critiq.errors import InvalidArgument
from critiq.jobs import Job, JobResults, JobState, is_job_state
from critiq.v1 import jobs_pb2
from critiq_server.api import bodies, schemas, translate
from critiq_server.api.answers import answer, operation
from critiq_server.jobs.operations import Jobs
from critiq_server.wording import quoted

NAME = "critiq.v1.Jobs"


class CallbackJson(BaseModel):
    model_config = ConfigDict(extra="forbid")

    url: str = Field(description="https URL of a host that the server's settings allow.")


class SubmitJson(BaseModel):
    """A job: pictures to score when nothing more urgent waits. Their `priority` means nothing: jobs are bulk work."""

    model_config = ConfigDict(extra="forbid")

    items: list[schemas.ItemJson]
    policy: str = Field("", description="Moderation policy that decides about each picture; items then name no model.")
    policy_version: str = Field("", description="Default: its newest version.")
    callback: CallbackJson | None = Field(None, description="Where to tell that the job has ended.")
    idempotency_key: str = Field("", description="A job with the key and content of one that is kept is that one.")

    def arguments(self) -> dict[str, Any]:
        return {
            "items": [entry.item(position) for position, entry in enumerate(self.items)],
            "policy": self.policy,
            "policy_version": self.policy_version,
            "callback": _callback(self.callback.url) if self.callback is not None else "",
            "key": self.idempotency_key,
        }


class JobResultJson(BaseModel):
    """One of `result`, `verdict` (in a job with a policy) and `error` is set."""

    id: str
    result: types.ScoreResult | None
    verdict: types.Verdict | None
    error: schemas.ErrorBody | None


class JobResultsJson(BaseModel):
    results: list[JobResultJson]
    next: int | None = Field(description="`start` of the next page; null if there is nothing more (yet).")


class JobsJson(BaseModel):
    jobs: list[Job]


def add_jobs(app: FastAPI, jobs: Jobs) -> None:
    """Adds the routes."""

    def listed(found: dict[str, list[Job]]) -> Message:
        return jobs_pb2.ListJobsResponse(jobs=[wire_jobs.job_to_proto(job) for job in found["jobs"]])

    documented = operation(SubmitJson, Job, "Take a job on: score many pictures later")
    documented["responses"][202] = documented["responses"].pop(200)

    @app.post("/v1/jobs", status_code=202, **documented)
    async def submit(request: Request) -> Response:
        job = await jobs.submit(**await _submitted(request))
        response = answer(request, job, wire_jobs.job_to_proto)
        response.status_code = 202
        response.headers["Location"] = f"/v1/jobs/{job.id}"
        return response

    parameters = [_parameter("state", "queued, running, done, failed or cancelled; default: all.", "string")]
    parameters += [
        _parameter("limit", "1..1000; default 100."),
        _parameter("after", "Last id of the page before.", "string"),
    ]

    @app.get("/v1/jobs", **_with(operation(None, JobsJson, "Jobs that are kept, newest first"), parameters))
    async def list_jobs(request: Request) -> Response:
        query = _query(request, {"state", "limit", "after"})
        found = await jobs.recent(_state(query.get("state", "")), _limit(query), query.get("after", ""))
        return answer(request, {"jobs": found}, listed)

    @app.get("/v1/jobs/{name}", **operation(None, Job, "How far a job is"))
    async def get(request: Request, name: str) -> Response:
        return answer(request, await jobs.get(name), wire_jobs.job_to_proto)

    pages = [_parameter("start", "Position of the first item, from 0."), _parameter("limit", "1..1000; default 100.")]

    @app.get(
        "/v1/jobs/{name}/results", **_with(operation(None, JobResultsJson, "Results of a job, page by page"), pages)
    )
    async def results(request: Request, name: str) -> Response:
        query = _query(request, {"start", "limit"})
        page = await jobs.results(name, bodies.whole_number(query.get("start", "0"), "start"), _limit(query))
        return answer(request, page, wire_jobs.results_to_proto)

    @app.delete("/v1/jobs/{name}", **operation(None, Job, "Cancel a job"))
    async def cancel(request: Request, name: str) -> Response:
        return answer(request, await jobs.cancel(name), wire_jobs.job_to_proto)


def methods(jobs: Jobs) -> dict[str, tuple[type[Message], Callable[[Any, float | None], Awaitable[Message]]]]:
    """The rpcs by name: what each takes, and what answers it."""

    async def submit(request: jobs_pb2.SubmitJobRequest, timeout: float | None) -> Message:
        return wire_jobs.job_to_proto(await jobs.submit(**_arguments(request)))

    async def get(request: jobs_pb2.GetJobRequest, timeout: float | None) -> Message:
        return wire_jobs.job_to_proto(await jobs.get(request.id))

    async def list_jobs(request: jobs_pb2.ListJobsRequest, timeout: float | None) -> Message:
        if request.state not in jobs_pb2.JobState.values():
            raise InvalidArgument(f"{request.state} is no state of this contract", field="state")
        state = wire_jobs.state_from_proto(request.state) if request.state else None
        found = await jobs.recent(state, request.limit, request.after)
        return jobs_pb2.ListJobsResponse(jobs=[wire_jobs.job_to_proto(job) for job in found])

    async def results(request: jobs_pb2.JobResultsRequest, timeout: float | None) -> Message:
        page: JobResults = await jobs.results(request.id, request.start, request.limit)
        return wire_jobs.results_to_proto(page)

    async def cancel(request: jobs_pb2.CancelJobRequest, timeout: float | None) -> Message:
        return wire_jobs.job_to_proto(await jobs.cancel(request.id))

    return {
        "Submit": (jobs_pb2.SubmitJobRequest, submit),
        "Get": (jobs_pb2.GetJobRequest, get),
        "List": (jobs_pb2.ListJobsRequest, list_jobs),
        "Results": (jobs_pb2.JobResultsRequest, results),
        "Cancel": (jobs_pb2.CancelJobRequest, cancel),
    }


async def _submitted(request: Request) -> dict[str, Any]:
    kind = bodies.content_type(request)
    if kind == bodies.PROTOBUF:
        return _arguments(translate.parse(jobs_pb2.SubmitJobRequest, await request.body()))
    if kind != bodies.JSON:
        raise InvalidArgument(
            f"cannot read a body of type {quoted(kind or '(none)')}; accepted: {bodies.JSON}, {bodies.PROTOBUF}",
            field="Content-Type",
        )
    return bodies.from_json(SubmitJson, await request.body()).arguments()


def _arguments(request: jobs_pb2.SubmitJobRequest) -> dict[str, Any]:
    return {
        "items": [translate.item(entry, str(position)) for position, entry in enumerate(request.items)],
        "policy": request.policy,
        "policy_version": request.policy_version,
        "callback": _callback(request.callback.url) if request.HasField("callback") else "",
        "key": request.idempotency_key,
    }


def _callback(url: str) -> str:
    if not url:
        raise InvalidArgument("the callback has no URL; leave the callback out if there is none", field="callback.url")
    return url


def _query(request: Request, known: set[str]) -> Mapping[str, str]:
    unknown = sorted(set(request.query_params) - known)
    if unknown:
        raise InvalidArgument(
            f"unknown parameter {quoted(unknown[0])}; known: {', '.join(sorted(known))}", field="URL query"
        )
    return request.query_params


def _state(text: str) -> JobState | None:
    if not text:
        return None
    if not is_job_state(text):
        raise InvalidArgument(f"{quoted(text)} is no state of a job; see /docs", field="state")
    return text


def _limit(query: Mapping[str, str]) -> int:
    if "limit" in query and not bodies.whole_number(query.get("limit", "0"), "limit"):
        raise InvalidArgument("0; at least 1 is due", field="limit")
    return bodies.whole_number(query.get("limit", "0"), "limit")


def _parameter(name: str, description: str, kind: str = "integer") -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": {"type": kind}}


def _with(documented: dict[str, Any], parameters: list[dict[str, Any]]) -> dict[str, Any]:
    return {**documented, "openapi_extra": {"parameters": parameters}}
