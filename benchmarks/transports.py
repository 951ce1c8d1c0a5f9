"""Ways to ask for a score, each as light as it can be: the client must not be what is measured.

A transport turns pictures into finished request bytes beforehand, sends them, and reads the answers afterwards; while
the clock runs it does nothing but send and wait.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

import grpc.aio

from benchmarks.pictures import Picture
from benchmarks.server import Server
from critiq.v1 import scoring_pb2

BATCH = 32
"""Pictures in one ``ScoreBatch`` call."""

Send = Callable[[bytes], Any]
"""Sends a request, returns an awaitable of the answer's bytes. Raises for anything but an answer with scores."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One picture to score, with a prompt or without."""

    picture: Picture
    prompt: str = ""


@dataclass(frozen=True, slots=True)
class Transport:
    """``encode`` makes one request of ``group`` asks; ``stored`` tells of each score in an answer whether it came from
    the store; ``connect(server, concurrency)`` gives what sends."""

    name: str
    title: str
    encode: Callable[[Sequence[Ask]], bytes]
    stored: Callable[[bytes], list[bool]]
    connect: Callable[[Server, int], Any]
    group: int = 1


def _score_request(ask: Ask) -> scoring_pb2.ScoreRequest:
    picture = ask.picture
    if picture.shape is None:
        return scoring_pb2.ScoreRequest(image=scoring_pb2.Image(encoded=picture.data), prompt=ask.prompt)
    raw = scoring_pb2.RawImage(data=picture.data, shape=picture.shape)
    return scoring_pb2.ScoreRequest(image=scoring_pb2.Image(raw=raw), prompt=ask.prompt)


def _unary(asks: Sequence[Ask]) -> bytes:
    return _score_request(asks[0]).SerializeToString()


def _batch(asks: Sequence[Ask]) -> bytes:
    items = [scoring_pb2.ScoreItem(request=_score_request(ask)) for ask in asks]
    return scoring_pb2.ScoreBatchRequest(items=items).SerializeToString()


_item_number = 0


def _item(asks: Sequence[Ask]) -> bytes:
    global _item_number  # noqa: PLW0603 - ids must differ within a stream, and a run may use one stream for all slices
    _item_number += 1
    return scoring_pb2.ScoreItem(id=str(_item_number), request=_score_request(asks[0])).SerializeToString()


def _file(asks: Sequence[Ask]) -> bytes:
    (ask,) = asks
    assert ask.picture.shape is None, "octet streams carry files"
    target = f"/v1/score?prompt={quote(ask.prompt)}" if ask.prompt else "/v1/score"
    return _post(target, "application/octet-stream", ask.picture.data)


def _json(asks: Sequence[Ask]) -> bytes:
    (ask,) = asks
    text = base64.b64encode(ask.picture.data).decode()
    image = {"base64": text} if ask.picture.shape is None else {"raw": {"base64": text, "shape": ask.picture.shape}}
    return _post("/v1/score", "application/json", json.dumps({"image": image, "prompt": ask.prompt}).encode())


def _protobuf(asks: Sequence[Ask]) -> bytes:
    return _post("/v1/score", "application/x-protobuf", _unary(asks))


def _post(target: str, kind: str, body: bytes) -> bytes:
    head = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _stored_unary(answer: bytes) -> list[bool]:
    return [score.from_store for score in scoring_pb2.ScoreResponse.FromString(answer).scores]


def _stored_batch(answer: bytes) -> list[bool]:
    results = scoring_pb2.ScoreBatchResponse.FromString(answer).results
    return [stored for result in results for stored in _stored_result(result)]


def _stored_item(answer: bytes) -> list[bool]:
    return _stored_result(scoring_pb2.ScoreItemResult.FromString(answer))


def _stored_result(result: scoring_pb2.ScoreItemResult) -> list[bool]:
    if result.HasField("error"):
        raise RuntimeError(f"an item failed: {result.error.message}")
    return [score.from_store for score in result.response.scores]


def _stored_json(answer: bytes) -> list[bool]:
    return [bool(score["from_store"]) for score in json.loads(answer)["scores"]]


@asynccontextmanager
async def _grpc_calls(server: Server, concurrency: int, method: str) -> AsyncIterator[Send]:
    async with grpc.aio.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        yield channel.unary_unary(f"/critiq.v1.Scoring/{method}", None, None)


@asynccontextmanager
async def _grpc_stream(server: Server, concurrency: int) -> AsyncIterator[Send]:
    """One stream; an answer is given to whoever asked for its id."""
    async with grpc.aio.insecure_channel(server.grpc, options=[("grpc.max_send_message_length", -1)]) as channel:
        stream = cast(Any, channel.stream_stream("/critiq.v1.Scoring/ScoreStream", None, None))()
        waiting: dict[bytes, asyncio.Future[bytes]] = {}

        async def read() -> None:
            while isinstance(answer := await stream.read(), bytes):
                waiting.pop(_first_field(answer)).set_result(answer)

        reader = asyncio.create_task(read())
        writing = asyncio.Lock()

        async def send(body: bytes) -> bytes:
            future = waiting[_first_field(body)] = asyncio.get_running_loop().create_future()
            async with writing:
                await stream.write(body)
            answer: bytes = await future
            return answer

        yield send
        await stream.done_writing()
        await reader


def _first_field(message: bytes) -> bytes:
    """The id of an item or of its answer, without parsing the rest: field 1, which protobuf writes first."""
    return message[2 : 2 + message[1]]


@asynccontextmanager
async def _http(server: Server, concurrency: int) -> AsyncIterator[Send]:
    """As many kept-alive connections as there are requests at once."""
    host, _, port = server.rest.rpartition(":")
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(_Connection, host, int(port)) for _ in range(concurrency)]
    idle = [connection for _, connection in made]

    async def send(request: bytes) -> bytes:
        connection = idle.pop()
        answer: bytes = await connection.ask(request)
        idle.append(connection)
        return answer

    yield send
    for transport, _ in made:
        transport.close()


class _Connection(asyncio.Protocol):
    """HTTP/1.1, as far as our own server's short answers need it: they have a Content-Length and come one at a time."""

    def __init__(self) -> None:
        self._received = b""
        self._answer: asyncio.Future[bytes]
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by type

    def ask(self, request: bytes) -> asyncio.Future[bytes]:
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) < length:
            return
        self._received = b""
        if head.startswith(b"HTTP/1.1 200"):
            self._answer.set_result(body)
        else:
            self._answer.set_exception(RuntimeError(f"{head.decode()}\n{body.decode()}"))

    def connection_lost(self, error: Exception | None) -> None:
        if hasattr(self, "_answer") and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the server closed the connection"))


def _connect_unary(server: Server, concurrency: int) -> Any:
    return _grpc_calls(server, concurrency, "Score")


def _connect_batch(server: Server, concurrency: int) -> Any:
    return _grpc_calls(server, concurrency, "ScoreBatch")


TRANSPORTS = {
    transport.name: transport
    for transport in (
        Transport("grpc", "gRPC Score", _unary, _stored_unary, _connect_unary),
        Transport("file", "REST octet-stream", _file, _stored_json, _http),
        Transport("json", "REST JSON base64", _json, _stored_json, _http),
        Transport("protobuf", "REST protobuf", _protobuf, _stored_unary, _http),
        Transport("batch", f"gRPC ScoreBatch of {BATCH}", _batch, _stored_batch, _connect_batch, group=BATCH),
        Transport("stream", "gRPC ScoreStream", _item, _stored_item, _grpc_stream),
    )
}
