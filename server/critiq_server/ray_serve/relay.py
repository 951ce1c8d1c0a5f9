"""Hands calls that came through Ray to the replica's own gRPC face, over a Unix socket.

So keys, limits, metrics, deadlines and errors are those of any critiq server: nothing is decided here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from critiq_server.ray_serve.frames import REMAINING_KEY, Failure, Frame, Metadata, Request

_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
_FOR_RAY = {"application", "request_id", "multiplexed_model_id", "session_id", REMAINING_KEY}
_FOR_THE_HOP = {"user-agent", "content-type", "te"}


class Relay:
    """A connection to the face. Belongs to the running event loop."""

    def __init__(self, socket: Path) -> None:
        self._channel = grpc.aio.insecure_channel(f"unix:{socket}", _UNLIMITED)

    async def unary(self, method: str, request: Request, metadata: Sequence[tuple[str, str | bytes]]) -> Frame:
        """Makes the call; cancelling this cancels it."""
        call: Any = self._channel.unary_unary(method, None, None)
        try:
            return Frame(await call(request.data, timeout=request.remaining, metadata=_passed_on(metadata)))
        except grpc.aio.AioRpcError as error:
            return Frame(_failure(error))

    async def stream(
        self, method: str, requests: AsyncIterator[bytes], metadata: Sequence[tuple[str, str | bytes]]
    ) -> AsyncIterator[Frame]:
        """The same for a stream; a failure is its last frame."""
        call: Any = self._channel.stream_stream(method, None, None)
        remaining = next((float(value) / 1000 for key, value in metadata if key == REMAINING_KEY), None)
        answers = call(requests, timeout=remaining, metadata=_passed_on(metadata))
        try:
            async for answer in answers:
                yield Frame(answer)
        except grpc.aio.AioRpcError as error:
            yield Frame(_failure(error))
        finally:
            answers.cancel()

    async def close(self) -> None:
        """Ends what is under way."""
        await self._channel.close(None)


def _passed_on(metadata: Sequence[tuple[str, str | bytes]]) -> Metadata:
    return tuple(
        (key, value)
        for key, value in metadata
        if key not in _FOR_RAY and key not in _FOR_THE_HOP and not key.startswith("grpc-")
    )


def _failure(error: grpc.aio.AioRpcError) -> Failure:
    trailing: Any = error.trailing_metadata() or ()
    return Failure(error.code(), error.details() or "", tuple((key, value) for key, value in trailing))
