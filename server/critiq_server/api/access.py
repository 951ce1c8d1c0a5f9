"""Which call needs which key: one table for HTTP, one for gRPC, and what stands before each face and asks for it.

What is not named here needs the scope ``score``: a new route is closed until somebody decides otherwise.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NoReturn, TypeAlias
from urllib.parse import quote

import grpc
import grpc.aio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from critiq.errors import CritiqError, TooBusy, Unauthenticated
from critiq_server.api.answers import dumps, refusal
from critiq_server.security.guard import Guard
from critiq_server.security.keys import SCOPES
from critiq_server.security.keys import Scope as KeyScope
from critiq_server.security.limits import Allowance
from critiq_server.telemetry.counters import ERRORS

Scopes = frozenset[KeyScope]

OPEN: Scopes = frozenset()
SCORE: Scopes = frozenset({"score"})
MODELS: Scopes = frozenset({"models"})
METRICS: Scopes = frozenset({"metrics"})
ADMIN: Scopes = frozenset({"admin"})
LISTING: Scopes = SCORE | MODELS
ANY: Scopes = frozenset(SCOPES)

_HEALTH = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready"}
_DOCUMENTS = re.compile(r"/|/page/[^/]+|/docs(/oauth2-redirect)?|/openapi\.json")
_LONGEST_WAIT = 10.0
"""Seconds that an item of a stream is held back for its key's rate; beyond that the stream ends with the reason."""
_ASK = 'Bearer realm="critiq"'

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Abort = Callable[[Any, CritiqError], Awaitable[None]]


def http_scopes(method: str, path: str, *, open_documents: bool = True) -> Scopes:
    """Scopes of which a call over HTTP needs one; none: everybody may make it."""
    reading = method in ("GET", "HEAD")
    if reading and path in _HEALTH:
        return OPEN
    if _DOCUMENTS.fullmatch(path):
        return OPEN if reading and open_documents else ANY
    if path in ("/v1/models", "/v1/aliases") or path.startswith(("/v1/models/", "/v1/aliases/")):
        return LISTING if reading else MODELS
    if path.startswith("/v2/repository/"):
        return LISTING if path == "/v2/repository/index" else MODELS
    if path in ("/v1/drift", "/v1/live") or path.startswith("/v1/replicas"):
        return METRICS
    if path.startswith("/v1/admin/"):
        return ADMIN
    if path.startswith("/v1/drift/"):
        return MODELS
    return SCORE


def rpc_scopes(method: str) -> Scopes:
    """The same for gRPC; ``method`` is ``/package.Service/Method``."""
    service, _, name = method.removeprefix("/").partition("/")
    if service == "grpc.health.v1.Health":
        return OPEN
    if service.startswith("grpc.reflection."):
        return ANY
    if service == "critiq.v1.Models":
        return LISTING if name in ("List", "Get", "ListAliases", "GetShadowReport") else MODELS
    if service == "inference.GRPCInferenceService":
        if name in ("ServerLive", "ServerReady"):
            return OPEN
        if name.startswith("Repository"):
            return LISTING if name == "RepositoryIndex" else MODELS
    return SCORE


def credential(headers: Mapping[str, str]) -> str:
    """The key among the headers, whose names are in small letters; empty if there is none.

    ``x-api-key`` comes first: ``Authorization`` may hold what another system wants.
    """
    if own := headers.get("x-api-key", ""):
        return own.strip()
    scheme, _, text = headers.get("authorization", "").partition(" ")
    return text.strip() if scheme.lower() == "bearer" else ""


class Guarded:
    """An ASGI application behind the keys. A call is refused before its body is read.

    Args:
        scopes: of each call, where the path says nothing because a port serves one thing only.
    """

    def __init__(self, app: ASGIApp, guard: Guard, scopes: Scopes | None = None) -> None:
        self._app, self._guard, self._scopes = app, guard, scopes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method, path = scope["method"], scope["path"]
        scopes = self._scopes
        if scopes is None:
            scopes = http_scopes(method, path, open_documents=self._guard.settings.open_documents)
        if scopes == OPEN:
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            certificate = scope.get("state", {}).get("certificate", ())
            sent, what = credential(headers), f"{method} {quote(path)}"
            allowance = self._guard.admit(sent, scopes, what, certificate, await self._guard.bearer(sent, what))
        except CritiqError as error:
            await _refused(Request(scope), error)(scope, receive, send)
            return
        with allowance.call():
            await self._app(scope, receive, send)


class GuardedCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """The same before every gRPC service.

    Args:
        abort: ends a call with an error; raises.
    """

    def __init__(self, guard: Guard, abort: Abort) -> None:
        self._guard, self._abort = guard, abort

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        method = handler_call_details.method
        scopes = rpc_scopes(method)
        if scopes == OPEN:
            return await continuation(handler_call_details)
        metadata: Any = handler_call_details.invocation_metadata or ()
        headers = {name: value for name, value in metadata if isinstance(value, str)}
        sent = credential(headers)
        if not sent and self._guard.takes_certificates:
            # Only the call's own context has the certificate, so a request of one message is read before it is judged.
            def admit(context: Any) -> Allowance:
                return self._guard.admit(sent, scopes, method, _certificate(context))

            return _counted(await continuation(handler_call_details), admit, self._refuse)
        try:
            allowance = self._guard.admit(sent, scopes, method, (), await self._guard.bearer(sent, method))
        except CritiqError as error:
            return self._refusing(error)
        return _counted(await continuation(handler_call_details), lambda context: allowance, self._refuse)

    def _refusing(self, error: CritiqError) -> grpc.RpcMethodHandler[Any, Any]:
        async def refuse(requests: Any, context: Any) -> NoReturn:
            await self._refuse(context, error)
            raise AssertionError("abort raises")

        # As a stream whatever the call is: so nothing that the caller sends is read.
        return grpc.stream_stream_rpc_method_handler(refuse)

    async def _refuse(self, context: Any, error: CritiqError) -> None:
        if isinstance(error, Unauthenticated):
            await context.send_initial_metadata((("www-authenticate", _ASK),))
        await self._abort(context, error)


def _certificate(context: Any) -> tuple[str, ...]:
    """Names in the client's certificate: its alternative names, or else its common name."""
    properties = context.auth_context()
    found = properties.get("x509_subject_alternative_name") or properties.get("x509_common_name") or ()
    return tuple(name.decode("utf-8", "replace") for name in found)


def _counted(handler: _Handler, admit: Callable[[Any], Allowance], refuse: Abort) -> _Handler:
    found: Any = handler
    if found is None or (found.unary_unary is None and found.stream_stream is None):
        return handler  # no such method; there is no other kind of call behind keys

    async def unary(request: Any, context: Any) -> Any:
        try:
            with admit(context).call():
                return await found.unary_unary(request, context)
        except CritiqError as error:
            await refuse(context, error)

    async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        try:
            allowance = admit(context)
            with allowance.call():
                async for answer in found.stream_stream(_spending(requests, allowance), context):
                    yield answer
        except CritiqError as error:
            await refuse(context, error)

    serialization = (found.request_deserializer, found.response_serializer)
    if found.unary_unary is not None:
        return grpc.unary_unary_rpc_method_handler(unary, *serialization)
    return grpc.stream_stream_rpc_method_handler(stream, *serialization)


async def _spending(requests: AsyncIterator[Any], allowance: Allowance) -> AsyncIterator[Any]:
    """Each item of a stream but the first counts as a call. One that comes too fast waits, as flow control would do."""
    first = True
    async for request in requests:
        while not first:
            try:
                allowance.spend()
                break
            except TooBusy as busy:
                if busy.retry_after is None or busy.retry_after > _LONGEST_WAIT:
                    raise
                await asyncio.sleep(busy.retry_after)
        first = False
        yield request


def _refused(request: Request, error: CritiqError) -> Response:
    if request.url.path.startswith("/v2"):  # the Open Inference Protocol's form
        ERRORS.labels("rest", error.code).inc()
        response = Response(dumps({"error": str(error)}), error.http_status, media_type="application/json")
        if error.retry_after is not None:
            response.headers["Retry-After"] = str(math.ceil(error.retry_after))
    else:
        response = refusal(request, error)
    if isinstance(error, Unauthenticated):
        response.headers["WWW-Authenticate"] = _ASK
    return response
