"""critiq's errors on Ray's HTTP proxies: set ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` to
``critiq_server.ray_serve.http_ingress:middlewares`` in the environment in which Ray is started.

Without it a caller whose replica dies gets a bare 500 from Ray's proxy; with it, 503 with a hint when to come back.
"""

from __future__ import annotations

import json
import math

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from critiq import wire
from critiq.errors import CritiqError
from critiq_server.ray_serve.failures import of_http_status, replica_gone

PROTOBUF = b"application/x-protobuf"
_RAYS_OWN = (404, 408, 429, 503)


def middlewares() -> list[Middleware]:
    """What Ray puts around each HTTP proxy."""
    return [Middleware(RetryableFailures)]


class RetryableFailures:
    """Turns Ray's own failures into critiq's errors; answers of replicas pass as they are."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith("/-/"):  # Ray's own routes
            await self._app(scope, receive, send)
            return
        begun = False
        replaced = False

        async def passed_on(message: Message) -> None:
            nonlocal begun, replaced
            if message["type"] == "http.response.start":
                begun = True
                if message["status"] in _RAYS_OWN and _plain(message):
                    replaced = True
                    await _refuse(scope, send, of_http_status(message["status"]))
            if not replaced:
                await send(message)

        await self._app(scope, receive, passed_on)
        if not begun:  # a replica that is gone: Ray's proxy sends nothing at all
            await _refuse(scope, send, replica_gone())


def _plain(message: Message) -> bool:
    """Ray's proxy answers in plain text (or says no type), critiq's faces never refuse in it."""
    kind = dict(message.get("headers", ())).get(b"content-type", b"text/plain")
    return bool(kind.startswith(b"text/plain"))


async def _refuse(scope: Scope, send: Send, error: CritiqError) -> None:
    headers = dict(scope["headers"])
    protobuf = PROTOBUF in headers.get(b"accept", b"") or headers.get(b"content-type") == PROTOBUF
    if protobuf:
        body, kind = wire.error_to_proto(error).SerializeToString(), PROTOBUF
    else:
        retry = None if error.retry_after is None else wire.milliseconds(error.retry_after)
        fields = {"code": error.code, "message": error.message, "field": error.field, "retry_after_ms": retry}
        body, kind = json.dumps({"error": fields}).encode(), b"application/json"
    answered = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    if error.retry_after is not None:
        answered.append((b"retry-after", str(math.ceil(error.retry_after)).encode()))
    await send({"type": "http.response.start", "status": error.http_status, "headers": answered})
    await send({"type": "http.response.body", "body": body})
