"""Drift over REST: ``/v1/drift``, and the header that labels a caller's traffic. It translates; it decides nothing."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from critiq.errors import BY_HTTP_STATUS, InvalidArgument
from critiq_server.api import bodies, schemas
from critiq_server.scoring.drift_labels import HEADER, Labels
from critiq_server.scoring.drift_report import DriftJson
from critiq_server.security.guard import audited
from critiq_server.service import Service
from critiq_server.wording import quoted

_HEADER = HEADER.encode()


class BaselineSetJson(BaseModel):
    """Of which series the baseline is set, and to what; either ``hours`` or ``requests``."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str = Field(min_length=1)
    version: str = Field("", description="Default: every version.")
    label: str | None = Field(None, description="Default: every label; empty: requests without one.")
    name: str = Field("", description="A dimension, or another name in /v1/drift. Default: all.")
    hours: float | None = Field(None, description="Take what came in the last so many hours.")
    requests: int | None = Field(None, description="Learn it anew from the next so many.")


def add_drift(app: FastAPI, service: Service) -> None:
    """Adds the routes."""
    responses: dict[int | str, dict[str, Any]] = {200: {"model": DriftJson}}
    responses |= {
        status: {"model": schemas.ErrorJson, "description": BY_HTTP_STATUS[status].__doc__ or ""}
        for status in (400, 403, 404, 413, 500)
    }

    @app.get(
        "/v1/drift",
        summary="Whether scores and pictures are still what they were",
        responses=responses,
        response_model=None,
        openapi_extra={"parameters": _PARAMETERS},
    )
    async def get_drift(request: Request) -> Response:
        query = _query(request)
        model, version = query.get("model", ""), query.get("version", "")
        if model:
            model = service.models.get(model, version).name  # it may be an alias
        with_sketches = query.get("sketches") == "true"
        answer = await service.drift.report(model, version, query.get("label"), sketches=with_sketches)
        return Response(answer.model_dump_json(), media_type=bodies.JSON)

    @app.post(
        "/v1/drift/baseline",
        summary="Set what later traffic is compared with",
        responses=responses,
        response_model=None,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {bodies.JSON: {"schema": BaselineSetJson.model_json_schema()}},
            }
        },
    )
    async def set_baseline(request: Request) -> Response:
        if (kind := bodies.content_type(request)) != bodies.JSON:
            # A page of another site can have its visitor's browser post a form or text here, but not JSON.
            raise InvalidArgument(
                f"cannot read a body of type {quoted(kind or '(none)')}; accepted: {bodies.JSON}", field="Content-Type"
            )
        body = bodies.from_json(BaselineSetJson, await request.body())
        with audited("set baseline", model=body.model, version=body.version):
            model = service.models.get(body.model, body.version).name  # it may be an alias
            answer = await service.drift.set_baseline(
                model, body.version, body.label, body.name, hours=body.hours, requests=body.requests
            )
        return Response(answer.model_dump_json(), media_type=bodies.JSON)


_DESCRIBED = {
    "model": "Only this model.",
    "version": "Only this version of it.",
    "label": "Only this label; empty: requests without one.",
    "sketches": "true: with the sketches, so that reports can merge those of several servers.",
}
_PARAMETERS = [
    {
        "name": name,
        "in": "query",
        "required": False,
        "description": text,
        "schema": {"type": "boolean"} if name == "sketches" else {"type": "string"},
    }
    for name, text in _DESCRIBED.items()
]


def _query(request: Request) -> dict[str, str]:
    found = dict(request.query_params)
    if unknown := sorted(set(found) - set(_DESCRIBED)):
        raise InvalidArgument(
            f"the URL's query has the unknown field {quoted(unknown[0])}; known: {', '.join(_DESCRIBED)}",
            field="URL query",
        )
    if found.get("sketches", "false") not in ("true", "false"):
        raise InvalidArgument(f"{quoted(found['sketches'])} is neither true nor false", field="sketches")
    if found.get("version") and not found.get("model"):
        raise InvalidArgument("a version alone says nothing; name its model too", field="version")
    return found


class Labelled:
    """Notes the caller's label before the application answers."""

    def __init__(self, app: ASGIApp, labels: Labels) -> None:
        self._app = app
        self._labels = labels

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            text = dict(scope["headers"]).get(_HEADER)
            self._labels.set(None if text is None else text.decode("latin-1"))
        await self._app(scope, receive, send)
