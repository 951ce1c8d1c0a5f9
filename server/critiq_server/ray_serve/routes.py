"""What replicas answer over HTTP beside a server's own routes, and what does not pass Ray's ingress."""

from __future__ import annotations

import re
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from critiq_server.api.answers import dumps, refusal
from critiq_server.ray_serve.failures import of_one_process

_ONE_PROCESS = re.compile(r"/v1/(jobs|drift|admin)(/.*)?|/v1/live|/v1/models/[^/]+/shadow")
_CHANGES = re.compile(r"/v1/(models|aliases)/.+|/v2/repository/models/.+")


def routes(directory: Any) -> list[BaseRoute]:
    """Where all replicas listen. They go before the REST face's.

    Args:
        directory: handle of the :class:`~critiq_server.ray_serve.directory.Directory`.
    """

    async def replicas(request: Request) -> Response:
        return Response(dumps({"replicas": await directory.list.remote()}), media_type="application/json")

    async def targets(request: Request) -> Response:
        found = [
            {"targets": [entry["metrics"]], "labels": {"replica": entry["replica"], "node": entry["node"]}}
            for entry in await directory.list.remote()
        ]
        return Response(dumps(found), media_type="application/json")

    return [
        Route("/v1/replicas", replicas, methods=["GET"]),
        Route("/v1/replicas/prometheus", targets, methods=["GET"]),
    ]


class ThroughIngress:
    """The REST face as Ray's ingress leads to it: calls that would reach one replica of many are refused."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and concerns_one(scope["method"], scope["path"]):
            await refusal(Request(scope), of_one_process())(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def concerns_one(method: str, path: str) -> bool:
    """Whether a call is about the one process that takes it."""
    changing = method not in ("GET", "HEAD", "OPTIONS")
    return bool(_ONE_PROCESS.fullmatch(path) or (changing and _CHANGES.fullmatch(path)))
