"""What a process answers to the others of its group, on a socket of its own that only this user can open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from critiq.errors import CritiqError
from critiq_server.api.live import snapshot
from critiq_server.api.metrics import metrics_app
from critiq_server.service import Service
from critiq_server.telemetry.faults import internal

Answer = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""To what another process asks by JSON, in JSON."""


def private_app(service: Service, is_ready: Callable[[], bool], is_serving: Callable[[], bool]) -> Starlette:
    """``GET /metrics``, ``/ready`` and ``/loaded``; ``POST /load`` and ``/unload`` with a name and a version;
    ``POST /ask/...`` for what answers of the whole group are made of.

    Args:
        is_ready: whether it serves its default model.
        is_serving: whether it takes calls at all: what it knows counts from its start until it stops.
    """
    registry, routing = service.registry, service.routing
    answers = _answers(service)

    async def ready(request: Request) -> Response:
        return PlainTextResponse("", 200 if is_ready() else 503)

    async def loaded(request: Request) -> Response:
        if not is_ready():
            return PlainTextResponse("", 503)
        return JSONResponse([f"{model.name}:{model.version}" for model in registry.list() if model.state == "ready"])

    async def change(request: Request, work: Callable[[str, str], Awaitable[object]], what: str) -> Response:
        asked = await request.json()
        try:
            await routing.catch_up()  # the other process may have moved an alias a moment ago
            await work(asked["name"], asked["version"])
        except CritiqError as error:
            return PlainTextResponse(error.message, 409)
        except Exception as error:
            return PlainTextResponse(internal(f"{what} for another process", error).message, 500)
        return PlainTextResponse("")

    async def load(request: Request) -> Response:
        return await change(request, registry.load, "loading")

    async def unload(request: Request) -> Response:
        return await change(request, registry.unload, "unloading")

    async def ask(request: Request) -> Response:
        what = request.path_params["what"]
        if not is_serving():
            return PlainTextResponse("", 503)
        if what not in answers:  # it is of another version, as one may be during an upgrade
            return PlainTextResponse(f"nothing is known of {what}", 404)
        try:
            found = await answers[what](await request.json())
        except CritiqError as error:
            return PlainTextResponse(error.message, 409)
        except Exception as error:
            return PlainTextResponse(internal(f"asked by another process: {what}", error).message, 500)
        return Response(orjson.dumps(found), media_type="application/json")

    return Starlette(
        routes=[
            Route("/ready", ready),
            Route("/loaded", loaded),
            Route("/load", load, methods=["POST"]),
            Route("/unload", unload, methods=["POST"]),
            Route("/ask/{what}", ask, methods=["POST"]),
            Mount("/metrics", metrics_app(service.metrics.registry)),
        ]
    )


def _answers(service: Service) -> Mapping[str, Answer]:
    async def live(asked: Mapping[str, Any]) -> Any:
        return snapshot(service).model_dump()

    async def here(asked: Mapping[str, Any]) -> Any:
        return True

    return {"live": live, "here": here, **service.drift.answers(), **service.routing.answers()}
