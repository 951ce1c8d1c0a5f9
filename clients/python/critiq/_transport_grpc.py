"""Calls over gRPC, blocking and asyncio.

gRPC's own retries are off, so that there is one retry policy (``_retry.py``), which knows the call's deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from critiq import errors, wire
from critiq._endpoint import Endpoint
from critiq._requests import Call
from critiq._retry import Deadline
from critiq._tracing import traced
from critiq.images import MAX_MESSAGE_BYTES
from critiq.v1 import scoring_pb2

T = TypeVar("T")

# Room for the framing around the largest message.
_MESSAGE_LIMIT = MAX_MESSAGE_BYTES + 64 * 1024
_OPTIONS = [
    ("grpc.max_send_message_length", _MESSAGE_LIMIT),
    ("grpc.max_receive_message_length", _MESSAGE_LIMIT),
    ("grpc.enable_retries", 0),
    # A name may stand for several servers: they take turns. gRPC would otherwise keep to the first.
    ("grpc.lb_policy_name", "round_robin"),
    # While a channel waits to connect again every call fails at once, so these waits must be shorter than our own.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # In spite of its name: how long a connection may take, with its TLS handshake on a far or busy server.
    ("grpc.min_reconnect_backoff_ms", 10_000),
    ("grpc.max_reconnect_backoff_ms", 1000),
]

Deliver = Callable[[scoring_pb2.ScoreItemResult | errors.CritiqError], None]


class GrpcTransport:
    """Thread-safe."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel = _blocking_channel(endpoint)

    def send(self, call: Call[T], deadline: Deadline) -> Any:
        """One try; raises a :class:`~critiq.errors.CritiqError`."""
        method = self._channel.unary_unary(
            f"/critiq.v1.{call.method}",
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response.FromString,
        )
        try:
            return method(call.request, timeout=deadline.remaining(), metadata=_metadata(self._endpoint))
        except grpc.RpcError as error:
            raise _translated(error, self._endpoint.target, deadline) from error
        except ValueError as error:  # what grpc raises on a closed channel
            raise errors.Cancelled(str(error)) from error

    def open_stream(self) -> BlockingGrpcStream:
        return BlockingGrpcStream(self._channel, self._endpoint)

    def close(self) -> None:
        self._channel.close()


class GrpcStream:
    """One connection of a score stream: answers, and finally what broke it, go to ``deliver``, from a thread."""

    holds_refused = True

    def __init__(self, channel: grpc.Channel, endpoint: Endpoint, deliver: Deliver) -> None:
        self._target = endpoint.target
        self._deliver = deliver
        self._outgoing: queue.SimpleQueue[scoring_pb2.ScoreItem | None] = queue.SimpleQueue()
        method = channel.stream_stream(
            "/critiq.v1.Scoring/ScoreStream",
            request_serializer=scoring_pb2.ScoreItem.SerializeToString,
            response_deserializer=scoring_pb2.ScoreItemResult.FromString,
        )
        try:
            self._call: Any = method(iter(self._outgoing.get, None), metadata=_metadata(endpoint))
        except ValueError as error:  # a closed channel
            raise errors.Cancelled(str(error)) from error
        # A thread of our own, because grpc cannot wait for the next answer with a time limit.
        threading.Thread(target=self._read, name="critiq-stream", daemon=True).start()

    def send(self, item: scoring_pb2.ScoreItem) -> None:
        self._outgoing.put(item)

    def end(self) -> None:
        self._outgoing.put(None)
        self._call.cancel()

    def _read(self) -> None:
        try:
            for answer in self._call:
                self._deliver(answer)
            self._deliver(errors.Unavailable(f"{self._target} closed the stream before every item was answered"))
        except grpc.RpcError as error:
            self._deliver(_translated(error, self._target, None))


class BlockingGrpcStream(GrpcStream):
    def __init__(self, channel: grpc.Channel, endpoint: Endpoint) -> None:
        self._incoming: queue.SimpleQueue[scoring_pb2.ScoreItemResult | errors.CritiqError] = queue.SimpleQueue()
        super().__init__(channel, endpoint, self._incoming.put)

    def receive(self, timeout: float | None) -> scoring_pb2.ScoreItemResult:
        """The next answer; ``timeout`` 0 means only what is there. Raises ``queue.Empty``, or what broke the stream."""
        received = self._incoming.get(timeout=timeout) if timeout != 0 else self._incoming.get_nowait()
        if isinstance(received, errors.CritiqError):
            raise received
        return received

    def close(self) -> None:
        self.end()


class AsyncGrpcStream(GrpcStream):
    """For asyncio, on a blocking channel all the same.

    grpc.aio loses the status of a stream that the server ends while we write ("Internal error from Core" takes its
    place), and the status says whether to go on.
    """

    def __init__(self, channel: grpc.Channel, endpoint: Endpoint, deliver: Deliver) -> None:
        loop = asyncio.get_running_loop()

        def hand_over(received: scoring_pb2.ScoreItemResult | errors.CritiqError) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(deliver, received)

        super().__init__(channel, endpoint, hand_over)

    async def close(self) -> None:
        self.end()


class AsyncGrpcTransport:
    """Belongs to the event loop that makes the first call."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._opened: grpc.aio.Channel | None = None
        self._stream_channel: grpc.Channel | None = None

    @property
    def _channel(self) -> grpc.aio.Channel:
        # Not in the constructor: grpc.aio binds a channel to the running event loop.
        if self._opened is None:
            if self._endpoint.secure:
                self._opened = grpc.aio.secure_channel(self._endpoint.target, _credentials(self._endpoint), _OPTIONS)
            else:
                self._opened = grpc.aio.insecure_channel(self._endpoint.target, _OPTIONS)
        return self._opened

    async def send(self, call: Call[T], deadline: Deadline) -> Any:
        """One try; raises a :class:`~critiq.errors.CritiqError`."""
        method = self._channel.unary_unary(
            f"/critiq.v1.{call.method}",
            request_serializer=type(call.request).SerializeToString,
            response_deserializer=call.response.FromString,
        )
        try:
            return await method(call.request, timeout=deadline.remaining(), metadata=_metadata(self._endpoint))
        except grpc.RpcError as error:
            raise _translated(error, self._endpoint.target, deadline) from error
        except grpc.aio.UsageError as error:  # a closed channel
            raise errors.Cancelled(str(error)) from error

    def open_stream(self, deliver: Deliver) -> AsyncGrpcStream:
        if self._stream_channel is None:
            self._stream_channel = _blocking_channel(self._endpoint)
        return AsyncGrpcStream(self._stream_channel, self._endpoint, deliver)

    async def close(self) -> None:
        if self._stream_channel is not None:
            self._stream_channel.close()
        if self._opened is not None:
            await self._opened.close(None)


def _metadata(endpoint: Endpoint) -> tuple[tuple[str, str], ...]:
    return tuple(traced(endpoint.headers).items())


def _blocking_channel(endpoint: Endpoint) -> grpc.Channel:
    if endpoint.secure:
        return grpc.secure_channel(endpoint.target, _credentials(endpoint), _OPTIONS)
    return grpc.insecure_channel(endpoint.target, _OPTIONS)


def _credentials(endpoint: Endpoint) -> grpc.ChannelCredentials:
    roots = endpoint.ca_file.read_bytes() if endpoint.ca_file is not None else None
    chain, key = (path.read_bytes() for path in endpoint.cert) if endpoint.cert is not None else (None, None)
    return grpc.ssl_channel_credentials(roots, key, chain)


_CANCELLED_HERE = ("Channel closed", "Locally cancelled")
"""How gRPC begins its words about a call that this side gave up."""


def _translated(error: grpc.RpcError, target: str, deadline: Deadline | None) -> errors.CritiqError:
    """The server's own error if it sent one, else the closest to the status that gRPC or a proxy gave."""
    status = error.code()
    details = error.details() or ""
    trailing: Any = error.trailing_metadata() or ()
    metadata: dict[str, str | bytes] = dict(trailing)
    sent = metadata.get("critiq-error-bin")
    if isinstance(sent, bytes):
        try:
            return _with_hint(wire.error_from_proto(scoring_pb2.Error.FromString(sent)), metadata)
        except DecodeError:
            pass
    if status is grpc.StatusCode.DEADLINE_EXCEEDED and deadline is not None:
        return deadline.exceeded()
    if status is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in details:
        return errors.TooLarge(f"{target}: {details}")
    kind = errors.BY_GRPC_STATUS.get(status, errors.Internal)
    if status is grpc.StatusCode.CANCELLED and not details.startswith(_CANCELLED_HERE):
        # A server that closes drops so the calls that arrive in that instant, before anything saw them.
        kind = errors.Unavailable
    return _with_hint(kind(f"{target}: {details or status.name}"), metadata)


def _with_hint(error: errors.CritiqError, metadata: dict[str, str | bytes]) -> errors.CritiqError:
    pushback = metadata.get("grpc-retry-pushback-ms")
    # Negative means "do not retry" in gRPC's own convention.
    if error.retry_after is None and isinstance(pushback, str) and pushback.isdigit():
        error.retry_after = int(pushback) / 1000
    return error
