"""Answers and refusals of REST routes, as JSON or protobuf, and what the OpenAPI document says about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from google.protobuf.message import Message

from critiq import wire
from critiq.errors import BY_HTTP_STATUS, CritiqError
from critiq_server.api import bodies, schemas
from critiq_server.api.forms import MESSAGE, other_bodies, query_of
from critiq_server.telemetry.counters import ERRORS

T = TypeVar("T")

REFERENCE = "#/components/schemas/{model}"


def operation(body: type[Any] | None, answer: type[Any] | None, summary: str, *, files: bool = False) -> dict[str, Any]:
    """What FastAPI needs to document a route whose body it does not read itself."""
    errors = {
        status: {"model": schemas.ErrorJson, "description": kind.__doc__ or "", "content": MESSAGE}
        for status, kind in BY_HTTP_STATUS.items()
        if status in (400, 403, 404, 409, 413, 429, 500, 503, 504)
    }
    answered = {"content": MESSAGE} if answer is None else {"model": answer, "content": MESSAGE}
    responses: dict[int, Any] = {200: answered, **errors}
    operation: dict[str, Any] = {"summary": summary, "responses": responses, "response_model": None}
    if body is not None:
        content: dict[str, Any] = {bodies.JSON: {"schema": {"$ref": REFERENCE.format(model=body.__name__)}}}
        content |= other_bodies(body.__name__, files=files)
        operation["openapi_extra"] = {"requestBody": {"required": True, "content": content}}
        if files:
            operation["openapi_extra"]["parameters"] = query_of(body.__name__)
    return operation


def answer(request: Request, value: T, to_proto: Callable[[T], Message]) -> Response:
    """``value`` in the form that the caller wants: a message, or JSON with the fields of its dataclasses."""
    if _wants_protobuf(request):
        return Response(to_proto(value).SerializeToString(), media_type=bodies.PROTOBUF)
    return Response(dumps(value), media_type=bodies.JSON)


def refusal(request: Request, error: CritiqError) -> Response:
    """An error in the form that the caller wants."""
    ERRORS.labels("rest", error.code).inc()
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if _wants_protobuf(request):
        return Response(
            wire.error_to_proto(error).SerializeToString(), error.http_status, headers, media_type=bodies.PROTOBUF
        )
    return Response(dumps({"error": error}), error.http_status, headers, media_type=bodies.JSON)


def _wants_protobuf(request: Request) -> bool:
    accept = request.headers.get("accept", "")
    if bodies.PROTOBUF in accept:
        return True
    return bodies.content_type(request) == bodies.PROTOBUF and bodies.JSON not in accept


def dumps(value: Any) -> bytes:
    """JSON of dataclasses and of errors among them."""
    return orjson.dumps(value, default=_error_body)


def _error_body(value: Any) -> dict[str, Any]:
    if not isinstance(value, CritiqError):
        raise TypeError(type(value).__name__)
    retry = None if value.retry_after is None else wire.milliseconds(value.retry_after)
    return {"code": value.code, "message": value.message, "field": value.field, "retry_after_ms": retry}
