"""What a process answers to the others of its group, on a socket of its own that only this user can open."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route

from critiq.errors import CritiqError
from critiq_server.api.metrics import metrics_app
from critiq_server.registry import Registry
from critiq_server.routing.operations import Routing
from critiq_server.telemetry.faults import internal


def private_app(
    registry: Registry, routing: Routing, metrics: CollectorRegistry, is_ready: Callable[[], bool]
) -> Starlette:
    """``GET /metrics``, ``/ready`` and ``/loaded``; ``POST /load`` and ``/unload`` with a name and a version."""

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

    return Starlette(
        routes=[
            Route("/ready", ready),
            Route("/loaded", loaded),
            Route("/load", load, methods=["POST"]),
            Route("/unload", unload, methods=["POST"]),
            Mount("/metrics", metrics_app(metrics)),
        ]
    )
