"""Aliases of model versions: REST under ``/v1/aliases``, rpcs of ``critiq.v1.Models``. It translates, no more."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from google.protobuf.message import Message
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from critiq import aliases
from critiq.aliases import Alias, AliasTarget, ShadowReport, parse_target
from critiq.errors import InvalidArgument, PermissionDenied
from critiq.v1 import models_pb2
from critiq_server.api import bodies, translate
from critiq_server.api.answers import REFERENCE, answer, operation
from critiq_server.api.forms import MESSAGE
from critiq_server.routing.keys import HEADER, routing_key
from critiq_server.routing.operations import Asked, Routing
from critiq_server.wording import quoted

_HEADER = HEADER.encode()


class AliasTargetJson(BaseModel):
    """One model version, with its share of the requests in percent."""

    model_config = ConfigDict(extra="forbid")

    model: str
    version: str = Field("", description="Default: the newest loaded version, or the newest of all.")
    percent: float | None = Field(None, description="Default: what the other targets leave of 100.")

    def asked(self) -> tuple[AliasTarget, bool]:
        percent = self.percent
        return AliasTarget(self.model, self.version, 100.0 if percent is None else percent), percent is not None


class SetAliasJson(BaseModel):
    """Where an alias points from now on. A target may be written `MODEL:VERSION=PERCENT` too."""

    model_config = ConfigDict(extra="forbid")

    targets: list[AliasTargetJson | str] = Field(description="Shares add up to 100; one target may leave out its own.")
    shadow: AliasTargetJson | str | None = Field(
        None, description="Scores `percent` of what was answered once more, for comparison. Default: none."
    )


class AliasesJson(BaseModel):
    aliases: list[Alias]


def add_aliases(app: FastAPI, routing: Routing) -> None:
    """Adds the routes."""

    @app.get("/v1/aliases", **operation(None, AliasesJson, "Aliases of model versions"))
    async def list_aliases(request: Request) -> Response:
        return answer(request, {"aliases": routing.list()}, lambda found: _listed(found["aliases"]))

    @app.get("/v1/aliases/{name}", **operation(None, Alias, "One alias"))
    async def get_alias(request: Request, name: str) -> Response:
        return answer(request, routing.get(name), aliases.alias_to_proto)

    @app.put("/v1/aliases/{name}", **_with_body(operation(None, Alias, "Point an alias at model versions")))
    async def set_alias(request: Request, name: str) -> Response:
        refuse_other_sites(request)
        targets, shadow = await _asked(request)
        return answer(request, await routing.set(name, targets, shadow), aliases.alias_to_proto)

    @app.delete("/v1/aliases/{name}", **operation(None, None, "Forget an alias"))
    async def remove_alias(request: Request, name: str) -> Response:
        refuse_other_sites(request)
        await routing.remove(name)
        return answer(request, {}, lambda _: models_pb2.RemoveAliasResponse())

    @app.post("/v1/aliases/{name}/promote", **operation(None, Alias, "Give all requests to an alias's canary"))
    async def promote_alias(request: Request, name: str) -> Response:
        refuse_other_sites(request)
        return answer(request, await routing.promote(name), aliases.alias_to_proto)

    @app.post("/v1/aliases/{name}/rollback", **operation(None, Alias, "Point an alias to where it pointed before"))
    async def rollback_alias(request: Request, name: str) -> Response:
        refuse_other_sites(request)
        return answer(request, await routing.rollback(name), aliases.alias_to_proto)

    @app.get("/v1/models/{name}/shadow", **operation(None, ShadowReport, "How far an alias's shadow agrees"))
    async def shadow_report(request: Request, name: str) -> Response:
        return answer(request, await routing.shadow_report(name), aliases.report_to_proto)


def methods(routing: Routing) -> Mapping[str, tuple[type[Message], Callable[[Any, float | None], Awaitable[Message]]]]:
    """The rpcs by name: what each takes, and what answers it."""

    async def list_aliases(request: models_pb2.ListAliasesRequest, timeout: float | None) -> Message:
        return _listed(routing.list())

    async def set_alias(request: models_pb2.SetAliasRequest, timeout: float | None) -> Message:
        return aliases.alias_to_proto(await routing.set(request.name, *_asked_by(request)))

    async def promote(request: models_pb2.PromoteAliasRequest, timeout: float | None) -> Message:
        return aliases.alias_to_proto(await routing.promote(request.name))

    async def rollback(request: models_pb2.RollbackAliasRequest, timeout: float | None) -> Message:
        return aliases.alias_to_proto(await routing.rollback(request.name))

    async def remove(request: models_pb2.RemoveAliasRequest, timeout: float | None) -> Message:
        await routing.remove(request.name)
        return models_pb2.RemoveAliasResponse()

    async def report(request: models_pb2.GetShadowReportRequest, timeout: float | None) -> Message:
        return aliases.report_to_proto(await routing.shadow_report(request.name))

    return {
        "GetShadowReport": (models_pb2.GetShadowReportRequest, report),
        "ListAliases": (models_pb2.ListAliasesRequest, list_aliases),
        "SetAlias": (models_pb2.SetAliasRequest, set_alias),
        "PromoteAlias": (models_pb2.PromoteAliasRequest, promote),
        "RollbackAlias": (models_pb2.RollbackAliasRequest, rollback),
        "RemoveAlias": (models_pb2.RemoveAliasRequest, remove),
    }


class RoutingKeyed:
    """Notes the caller's routing key before the application answers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            note_routing_key(next((value.decode("latin-1") for name, value in scope["headers"] if name == _HEADER), ""))
        await self._app(scope, receive, send)


def note_routing_key(key: str) -> None:
    """For what the current task asks; empty: the caller sent none."""
    routing_key.set(key)


def refuse_other_sites(request: Request) -> None:
    """Loading needs no body, so any page that an operator opens could ask for it; browsers say whose page it is."""
    site = request.headers.get("sec-fetch-site", "none")
    if site not in ("none", "same-origin"):
        raise PermissionDenied(f"this is not done for a page of another site (Sec-Fetch-Site: {site[:32]})")


def _listed(found: list[Alias]) -> models_pb2.ListAliasesResponse:
    return models_pb2.ListAliasesResponse(aliases=[aliases.alias_to_proto(alias) for alias in found])


async def _asked(request: Request) -> tuple[Asked, AliasTarget | None]:
    kind = bodies.content_type(request)
    if kind == bodies.PROTOBUF:
        return _asked_by(translate.parse(models_pb2.SetAliasRequest, await request.body()))
    if kind != bodies.JSON:
        raise InvalidArgument(
            f"cannot read a body of type {quoted(kind or '(none)')}; accepted: {bodies.JSON}, {bodies.PROTOBUF}",
            field="Content-Type",
        )
    body = bodies.from_json(SetAliasJson, await request.body())
    targets = [_target(entry, f"targets[{position}]") for position, entry in enumerate(body.targets)]
    return targets, None if body.shadow is None else _target(body.shadow, "shadow")[0]


def _target(entry: AliasTargetJson | str, field: str) -> tuple[AliasTarget, bool]:
    return parse_target(entry, field) if isinstance(entry, str) else entry.asked()


def _asked_by(request: models_pb2.SetAliasRequest) -> tuple[Asked, AliasTarget | None]:
    targets = [(aliases.target_from_proto(target), target.HasField("percent")) for target in request.targets]
    return targets, aliases.target_from_proto(request.shadow) if request.HasField("shadow") else None


def _with_body(documented: dict[str, Any]) -> dict[str, Any]:
    content = {bodies.JSON: {"schema": {"$ref": REFERENCE.format(model=SetAliasJson.__name__)}}, **MESSAGE}
    return {**documented, "openapi_extra": {"requestBody": {"required": True, "content": content}}}
