"""The Prometheus metrics, on a port of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def metrics_app(registry: CollectorRegistry) -> Starlette:
    """Answers every path with the metrics, in the form that is asked for."""

    # In a thread, as it is no coroutine: hundreds of series take milliseconds that the event loop has no time for.
    def metrics(request: Request) -> Response:
        try:
            encode, content_type = choose_encoder(request.headers.get("accept", ""))
        except (ValueError, TypeError):  # a version that is none
            encode, content_type = choose_encoder("")
        return Response(encode(registry), headers={"Content-Type": content_type})

    return Starlette(routes=[Route("/{path:path}", metrics, methods=["GET"])], middleware=[Middleware(GZipMiddleware)])
