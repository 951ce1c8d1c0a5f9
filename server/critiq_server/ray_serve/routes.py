"""Routes of replicas beside a server's own: where all replicas listen, and what one of many does not do."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from critiq_server.api.answers import dumps, refusal
from critiq_server.ray_serve.failures import of_one_process

_ONE_PROCESS = (
    "/v1/jobs",
    "/v1/jobs/{rest:path}",
    "/v1/live",
    "/v1/drift",
    "/v1/drift/{rest:path}",
    "/v1/aliases/{name}/{report:path}",
)
_CHANGES = ("/v1/models/{name}/{change:path}", "/v2/repository/models/{name}/{change:path}", "/v1/aliases/{name:path}")


def routes(directory: Any) -> list[BaseRoute]:
    """They go before the REST face's.

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
        *(Route(path, _refused, methods=["GET", "POST", "PUT", "DELETE"]) for path in _ONE_PROCESS),
        *(Route(path, _refused, methods=["POST", "PUT", "DELETE"]) for path in _CHANGES),
    ]


async def _refused(request: Request) -> Response:
    return refusal(request, of_one_process())
