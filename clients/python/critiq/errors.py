"""The errors of critiq: one class a kind, one table from class to gRPC status and HTTP code.

The server raises them, every face translates them by the attributes below, and the client raises the same classes
again, so that ``except critiq.TooBusy`` means the same on both sides of the wire.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class CritiqError(Exception):
    """Base of all errors that a call can end in.

    Attributes:
        message: what was wrong, with which value, and what to do.
        field: the request field to blame, for instance ``image.encoded``; empty if none is.
        retry_after: seconds until a retry makes sense; ``None`` where the server gave no hint.
    """

    code: ClassVar[str] = "INTERNAL"
    grpc_status: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    """Whether the same call may succeed later, unchanged."""

    def __init__(self, message: str, *, field: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.field}: {self.message}" if self.field else self.message

    def within(self, prefix: str) -> CritiqError:
        """The same error with its field placed under ``prefix``, for instance ``items[3]``."""
        field = f"{prefix}.{self.field}" if self.field else prefix
        return type(self)(self.message, field=field, retry_after=self.retry_after)


class InvalidArgument(CritiqError):
    """The request cannot be used as it is."""

    code = "INVALID_ARGUMENT"
    grpc_status = grpc.StatusCode.INVALID_ARGUMENT
    http_status = 400


class TooLarge(InvalidArgument):
    """Something in the request is larger than the server's settings allow."""

    code = "TOO_LARGE"
    http_status = 413


class Unauthenticated(CritiqError):
    """The server wants credentials that the call did not carry."""

    code = "UNAUTHENTICATED"
    grpc_status = grpc.StatusCode.UNAUTHENTICATED
    http_status = 401


class PermissionDenied(CritiqError):
    """The server's settings or the caller's rights do not allow it."""

    code = "PERMISSION_DENIED"
    grpc_status = grpc.StatusCode.PERMISSION_DENIED
    http_status = 403


class NotFound(CritiqError):
    """No such model, version or dimension; the message lists the known ones."""

    code = "NOT_FOUND"
    grpc_status = grpc.StatusCode.NOT_FOUND
    http_status = 404


class FailedPrecondition(CritiqError):
    """The server's state forbids it until somebody changes that state, for instance a broken bundle."""

    code = "FAILED_PRECONDITION"
    grpc_status = grpc.StatusCode.FAILED_PRECONDITION
    http_status = 409


class FeaturesMissing(FailedPrecondition):
    """The model needs features of a large multimodal model that are not stored, and the server computes none."""

    code = "FEATURES_MISSING"


class TooBusy(CritiqError):
    """The server has as much work as it accepts; ``retry_after`` says when to come back."""

    code = "TOO_BUSY"
    grpc_status = grpc.StatusCode.RESOURCE_EXHAUSTED
    http_status = 429
    retryable = True


class Cancelled(CritiqError):
    """The caller went away."""

    code = "CANCELLED"
    grpc_status = grpc.StatusCode.CANCELLED
    http_status = 499


class Internal(CritiqError):
    """A fault of the server. The message carries no detail; the server's log has it under the id in the message."""

    code = "INTERNAL"


class Unavailable(CritiqError):
    """The server cannot be reached."""

    code = "UNAVAILABLE"
    grpc_status = grpc.StatusCode.UNAVAILABLE
    http_status = 503
    retryable = True


class ModelNotLoaded(Unavailable):
    """The model is known but not loaded (yet)."""

    code = "MODEL_NOT_LOADED"


class Stopping(Unavailable):
    """The server is stopping and takes no new work."""

    code = "STOPPING"


class DeadlineExceeded(CritiqError):
    """The deadline passed before the answer was ready."""

    code = "DEADLINE_EXCEEDED"
    grpc_status = grpc.StatusCode.DEADLINE_EXCEEDED
    http_status = 504


BY_CODE: dict[str, type[CritiqError]] = {
    kind.code: kind
    for kind in (
        InvalidArgument,
        TooLarge,
        Unauthenticated,
        PermissionDenied,
        NotFound,
        FailedPrecondition,
        FeaturesMissing,
        TooBusy,
        Cancelled,
        Internal,
        Unavailable,
        ModelNotLoaded,
        Stopping,
        DeadlineExceeded,
    )
}
BY_GRPC_STATUS: dict[grpc.StatusCode, type[CritiqError]] = {
    kind.grpc_status: kind
    for kind in BY_CODE.values()
    if kind not in (TooLarge, FeaturesMissing, ModelNotLoaded, Stopping)
}
BY_HTTP_STATUS: dict[int, type[CritiqError]] = {
    kind.http_status: kind for kind in BY_CODE.values() if kind not in (FeaturesMissing, ModelNotLoaded, Stopping)
}
