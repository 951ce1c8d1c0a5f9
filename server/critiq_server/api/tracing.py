"""What stands first before each face where calls are traced or logged: the trace goes on, the request gets its id."""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, TypeAlias

import grpc
import grpc.aio
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from critiq_server.telemetry import traces

REQUEST_ID, TRACE_ID = "x-request-id", "x-trace-id"

_SOUND_ID = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
_METHODS = {"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"}
_UNTRACED = {"/healthz", "/readyz", "/v2/health/live", "/v2/health/ready", "/v1/live"}
"""Asked every few seconds by machines, and of no interest."""
_UNTRACED_SERVICES = ("grpc.health.", "grpc.reflection.")
_SERVERS_FAULT = {2, 4, 12, 13, 14, 15}
"""gRPC's codes that are an error of the server, as OpenTelemetry's conventions have it."""

_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class TracedHttp:
    """An ASGI application whose calls are traced, with the conventions of OpenTelemetry for HTTP.

    Neither the path nor the query are kept, only the route: paths hold names that callers chose.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        answers = [(REQUEST_ID, _identify(headers))]
        tracer, call = traces.tracer, None
        method = scope["method"] if scope["method"] in _METHODS else "_OTHER"
        if tracer is not None and scope["path"] not in _UNTRACED:
            attributes = {"http.request.method": method, "url.scheme": scope["scheme"]}
            attributes["network.protocol.version"] = scope["http_version"]
            call = tracer.call(method, headers, attributes)
            if ids := tracer.ids():
                answers.append((TRACE_ID, ids[0]))
        status = 0

        async def answering(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                told = [(name.encode(), value.encode()) for name, value in answers]
                message = {**message, "headers": [*message.get("headers", ()), *told]}
            await send(message)

        try:
            await self._app(scope, receive, answering)
        finally:
            if tracer is not None and call is not None:
                route = _route(scope, status)
                found = {"http.response.status_code": status} | ({"http.route": route} if route else {})
                failure = str(status) if status >= 500 else "" if status else "no answer"
                tracer.answered(call, found, failure, f"{method} {route}".strip())


class TracedCalls(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in its stubs only
    """The same before every gRPC service. Both ids go back with the call's end, as trailing metadata."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> _Handler:
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.removeprefix("/")
        found: Any = handler
        if found is None or method.startswith(_UNTRACED_SERVICES):
            return handler
        metadata: Any = handler_call_details.invocation_metadata or ()
        headers = {name: value for name, value in metadata if isinstance(value, str)}
        serialization = (found.request_deserializer, found.response_serializer)
        if found.unary_unary is not None:

            async def unary(request: Any, context: Any) -> Any:
                with _Call(method, headers, context):
                    return await found.unary_unary(request, context)

            return grpc.unary_unary_rpc_method_handler(unary, *serialization)
        if found.stream_stream is None:
            return handler

        async def stream(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
            with _Call(method, headers, context):
                async for answer in found.stream_stream(requests, context):
                    yield answer

        return grpc.stream_stream_rpc_method_handler(stream, *serialization)


class _Call:
    """One call over gRPC, in its task."""

    def __init__(self, method: str, headers: Mapping[str, str], context: Any) -> None:
        self._method, self._headers, self._context = method, headers, context

    def __enter__(self) -> None:
        told = [(REQUEST_ID, _identify(self._headers))]
        self._tracer, self._call = traces.tracer, None
        if self._tracer is not None:
            service, _, name = self._method.partition("/")
            attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
            self._call = self._tracer.call(self._method, self._headers, attributes)
            if ids := self._tracer.ids():
                told.append((TRACE_ID, ids[0]))
        self._context.set_trailing_metadata(tuple(told))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._tracer is None:
            return
        code = self._context.code()  # a number, one of gRPC's enumeration, or nothing yet
        number = getattr(code, "value", (code or 0,))[0]
        if number == 0 and kind is not None:
            number = 1 if kind.__name__ in ("CancelledError", "GeneratorExit") else 2
        failure = str(number) if number in _SERVERS_FAULT else ""
        self._tracer.answered(self._call, {"rpc.grpc.status_code": number}, failure)


def _identify(headers: Mapping[str, str]) -> str:
    """The request's id, for the log: the caller's, or one of ours."""
    given = headers.get(REQUEST_ID, "")
    found = given if _SOUND_ID.fullmatch(given) else secrets.token_hex(8)
    traces.request_id.set(found)
    return found


def _route(scope: Scope, status: int) -> str:
    """The route's pattern; empty where nothing was found at the path."""
    if route := getattr(scope.get("route"), "path", ""):
        return f"{scope.get('root_path', '')}{route}"
    if status == 404 or scope.get("endpoint") is None:
        return ""
    # Plain routes of Starlette do not say so: what stands for a parameter becomes its name again.
    names = {str(value): f"{{{name}}}" for name, value in scope.get("path_params", {}).items()}
    return "/".join(names.get(part, part) for part in scope["path"].split("/"))
