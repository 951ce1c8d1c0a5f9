"""critiq's calls on Ray's gRPC proxies: name :func:`add_critiq_to_server` in ``grpc_options.grpc_servicer_functions``.

Ray puts its own routing in place of the handlers that are added here. Around it stands what callers expect: the
deadline goes with the call, and whatever it ends in is one of critiq's errors, Ray's own failures too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from critiq_server.api.grpc_errors import abort
from critiq_server.ray_serve.failures import of_one_process, of_status
from critiq_server.ray_serve.frames import REMAINING_KEY, Request, unpack
from critiq_server.ray_serve.methods import ONE_PROCESS, STREAMS, UNARY

Context = grpc.aio.ServicerContext[Any, Any]


def add_critiq_to_server(servicer: object, server: Any) -> None:
    """What Ray calls in each proxy. ``servicer`` is a stand-in of Ray's and not used."""
    server.add_generic_rpc_handlers((_Calls(),))


class _Calls(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # generic in its stubs only
    """The handlers by method; Ray replaces those in ``_method_handlers``, :meth:`service` wraps what it finds there."""

    def __init__(self) -> None:
        # Without a deserialiser: the message goes on as the bytes that came.
        self._method_handlers: dict[str, Any] = {
            **{method: grpc.unary_unary_rpc_method_handler(_not_replaced) for method in UNARY},
            **{method: grpc.stream_stream_rpc_method_handler(_not_replaced) for method in STREAMS},
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """The handler of a call; ``None`` if there is none."""
        if handler_call_details.method in ONE_PROCESS:
            return grpc.unary_unary_rpc_method_handler(_refused)
        found = self._method_handlers.get(handler_call_details.method)
        if found is None:
            return None
        if found.request_streaming:
            return grpc.stream_stream_rpc_method_handler(_stream(found.stream_stream))
        return grpc.unary_unary_rpc_method_handler(_unary(found.unary_unary))


class _RaysContext:
    """What Ray's routing sees of a call. How it ends is noted here, not told to the caller yet."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._status: grpc.StatusCode | None = None
        self._details = ""

    def invocation_metadata(self) -> Any:
        remaining = _remaining(self._context)
        metadata: Any = self._context.invocation_metadata() or ()
        own = () if remaining is None else ((REMAINING_KEY, str(int(1000 * remaining))),)
        return (*((key, value) for key, value in metadata if key != REMAINING_KEY), *own)

    def set_code(self, code: grpc.StatusCode) -> None:
        self._status = code

    def code(self) -> Any:
        return self._status

    def set_details(self, details: str) -> None:
        self._details = details

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return ()

    def set_trailing_metadata(self, metadata: Any) -> None:
        """Ray's request ids; not passed on."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def check(self, *, stream: bool = False) -> None:
        """Ends the call if Ray has ended it with an error."""
        if self._status is not None and self._status is not grpc.StatusCode.OK:
            await abort(self._context, of_status(self._status, self._details, stream=stream))


def _unary(routed: Any) -> Any:
    async def unary(data: bytes, context: Context) -> bytes:
        seen = _RaysContext(context)
        frame = await routed(Request(data, _remaining(context)), seen)
        await seen.check()
        return await _opened(frame, context)

    return unary


def _stream(routed: Any) -> Any:
    async def stream(requests: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        seen = _RaysContext(context)
        async for frame in routed(requests, seen):
            yield await _opened(frame, context)
        await seen.check(stream=True)

    return stream


async def _opened(frame: bytes, context: Context) -> bytes:
    content = unpack(frame)
    if isinstance(content, bytes):
        return content
    await context.abort(content.status, content.details, content.trailing)
    raise AssertionError("abort raises")


async def _refused(data: bytes, context: Context) -> bytes:
    await abort(context, of_one_process())


def _remaining(context: Context) -> float | None:
    remaining: float | None = context.time_remaining()
    return None if remaining is None else max(0.0, remaining)


def _not_replaced(*_: Any) -> Any:
    raise AssertionError("Ray has not put its routing here")
