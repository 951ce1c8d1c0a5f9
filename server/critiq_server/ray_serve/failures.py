"""What Ray itself says when a call comes to nothing, as critiq's errors."""

from __future__ import annotations

import re

import grpc

from critiq.errors import Cancelled, CritiqError, DeadlineExceeded, FailedPrecondition, NotFound, TooBusy, Unavailable
from critiq_server.telemetry.faults import internal

RETRY_SECONDS = 0.5
"""Hint to callers whose replica is gone: by then Ray sends their next try to another one, if there is one."""

_GONE = re.compile(
    r"actor died|actor is dead|actor experienced an error|is unavailable|no longer available|(worker|raylet) died",
    re.IGNORECASE,
)
"""How Ray words the loss of a replica, of its process or of its machine."""


def replica_gone() -> Unavailable:
    """The error of a call whose replica died with it."""
    return Unavailable(
        "the replica that held this call is gone; send the call again, another replica takes it",
        retry_after=RETRY_SECONDS,
    )


def of_one_process() -> FailedPrecondition:
    """The error of a call that would reach one replica of many."""
    return FailedPrecondition(
        "this would concern one replica of many: call that replica directly (GET /v1/replicas says where they are); "
        "jobs need a server of their own, and models and aliases of all replicas are in the application's settings"
    )


def of_status(status: grpc.StatusCode, details: str, *, stream: bool = False) -> CritiqError:
    """The error for a call over gRPC that Ray ended with ``status``, with its own words where they help a caller."""
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED:
        return TooBusy(f"all replicas are busy and Ray's queue is full: {details}", retry_after=RETRY_SECONDS)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED and stream:
        # The caller's own deadline ends a call without us: this is Ray's request_timeout_s.
        return Unavailable(f"go on in another stream, or call a replica directly: {details}", retry_after=0.0)
    if status is grpc.StatusCode.DEADLINE_EXCEEDED:
        return DeadlineExceeded(f"Ray's time limit for a call passed: {details}")
    if status is grpc.StatusCode.CANCELLED:
        return Cancelled("the caller went away")
    if status is grpc.StatusCode.NOT_FOUND:
        if "metadata not set" in details:
            return Unavailable(
                "no application is deployed yet, or there are several: then name one in the metadata `application`",
                retry_after=2 * RETRY_SECONDS,
            )
        return NotFound(details, field="application")
    if status is grpc.StatusCode.UNAVAILABLE:
        return Unavailable(f"no replica takes calls at present: {details}", retry_after=2 * RETRY_SECONDS)
    if _GONE.search(details):
        return replica_gone()
    return internal("Ray's ingress", RuntimeError(f"{status.name}: {details}"))


def of_http_status(status: int) -> CritiqError:
    """The same for an answer over HTTP that Ray made up itself."""
    if status == 408:
        return DeadlineExceeded("Ray's time limit for a call passed")
    if status == 429:
        return TooBusy("all replicas are busy and Ray's queue is full", retry_after=RETRY_SECONDS)
    return Unavailable(
        "no application is deployed yet, or none of its replicas takes calls; try again", retry_after=2 * RETRY_SECONDS
    )
