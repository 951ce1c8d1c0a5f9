"""How a call over gRPC ends in one of our errors."""

from __future__ import annotations

import asyncio
from typing import Any, NoReturn

import grpc.aio

from critiq import wire
from critiq.errors import CritiqError, DeadlineExceeded
from critiq_server.telemetry.counters import ERRORS

ERROR_KEY = "critiq-error-bin"
RETRY_KEY = "grpc-retry-pushback-ms"


async def abort(context: grpc.aio.ServicerContext[Any, Any], error: CritiqError) -> NoReturn:
    """Ends the call with the error's status; always raises. Of a caller who has gone, it ends as a cancelled call."""
    ERRORS.labels("grpc", error.code).inc()
    if isinstance(error, DeadlineExceeded) and context.time_remaining() == 0:
        # gRPC ends such a call by itself. Where it was quicker than we, telling it all the same would lose 0.4 kB each
        # time: grpcio does not free what could not be sent.
        raise asyncio.CancelledError
    metadata: list[tuple[str, str | bytes]] = [*(context.trailing_metadata() or ())]
    metadata.append((ERROR_KEY, wire.error_to_proto(error).SerializeToString()))
    if error.retry_after is not None:
        metadata.append((RETRY_KEY, str(wire.milliseconds(error.retry_after))))
    try:
        await context.abort(error.grpc_status, str(error), tuple(metadata))
    except grpc.aio.InternalError:  # there is nobody to tell; gRPC would log it as a fault of ours
        raise asyncio.CancelledError from None
    raise AssertionError("abort raises")
