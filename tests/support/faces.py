"""One request through every face: gRPC, and over REST as JSON, protobuf, a multipart form and the file itself.

A request is written once, as a message of the contract; ``ask`` sends it in the form that the face takes and returns
the answer, or the refusal, in one shape that can be compared across faces.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import httpx
from google.protobuf.message import Message

from critiq import wire
from critiq.errors import CritiqError
from critiq.v1 import scoring_pb2

PROTOBUF = "application/x-protobuf"


@dataclass(frozen=True)
class Operation:
    method: str
    path: str
    response: type[Message]
    read: Callable[[Any], Any]


def _read_batch(message: Any) -> Any:
    return {"results": [wire.item_from_proto(entry) for entry in message.results]}


OPERATIONS: Mapping[type[Message], Operation] = {
    scoring_pb2.ScoreRequest: Operation(
        "/critiq.v1.Scoring/Score", "/v1/score", scoring_pb2.ScoreResponse, wire.result_from_proto
    ),
    scoring_pb2.ScoreBatchRequest: Operation(
        "/critiq.v1.Scoring/ScoreBatch", "/v1/score/batch", scoring_pb2.ScoreBatchResponse, _read_batch
    ),
    scoring_pb2.RankRequest: Operation(
        "/critiq.v1.Scoring/Rank", "/v1/rank", scoring_pb2.RankResponse, wire.rank_from_proto
    ),
    scoring_pb2.CompareRequest: Operation(
        "/critiq.v1.Scoring/Compare", "/v1/compare", scoring_pb2.CompareResponse, wire.compare_from_proto
    ),
}


@dataclass(frozen=True)
class Refusal:
    """A call that failed as a whole. ``status`` is gRPC's name or HTTP's number."""

    status: str | int
    code: str
    field: str
    message: str
    retry_after_ms: int | None = None


Answer = dict[str, Any] | Refusal


@dataclass
class Ports:
    """Connections to one server."""

    channel: grpc.aio.Channel
    http: httpx.AsyncClient

    async def grpc(self, method: str, data: bytes, timeout: float | None = 60) -> bytes | Refusal:
        call = self.channel.unary_unary(method)
        try:
            answer: bytes = await call(data, timeout=timeout)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)
        return answer

    async def ask(self, face: str, request: Message, timeout: float | None = 60) -> Answer:
        """``request`` through ``face``, one of ``FACES`` that ``takes`` it."""
        operation = OPERATIONS[type(request)]
        if face == "grpc":
            data = await self.grpc(operation.method, request.SerializeToString(), timeout)
            if isinstance(data, Refusal):
                return data
            message = operation.response()
            message.ParseFromString(data)
            return dict(plain(operation.read(message)))
        response = await self.http.post(operation.path, **FACES[face](request))
        if response.status_code != 200:
            return http_refusal(response)
        if response.headers["content-type"] == PROTOBUF:
            message = operation.response()
            message.ParseFromString(response.content)
            return dict(plain(operation.read(message)))
        assert response.headers["content-type"] == "application/json"
        return dict(response.json())


@asynccontextmanager
async def ports(app: Any) -> AsyncIterator[Ports]:
    """Connections to a server that runs in this process."""
    options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    async with (
        grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}", options) as channel,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}", timeout=60, trust_env=False) as http,
    ):
        yield Ports(channel, http)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """What gRPC says; checks that status text, the error in the metadata and the retry hint tell the same."""
    trailing = dict(error.trailing_metadata() or ())
    found = scoring_pb2.Error()
    if "critiq-error-bin" in trailing:
        found.ParseFromString(trailing["critiq-error-bin"])
        assert error.details() == (f"{found.field}: {found.message}" if found.field else found.message)
    retry = found.retry_after_ms if found.HasField("retry_after_ms") else None
    pushback = trailing.get("grpc-retry-pushback-ms")
    assert (None if pushback is None else int(pushback)) == retry
    return Refusal(error.code().name, found.code, found.field, found.message or str(error.details()), retry)


def http_refusal(response: httpx.Response) -> Refusal:
    if response.headers["content-type"] == PROTOBUF:
        found = scoring_pb2.Error()
        found.ParseFromString(response.content)
        retry = found.retry_after_ms if found.HasField("retry_after_ms") else None
        refusal = Refusal(response.status_code, found.code, found.field, found.message, retry)
    else:
        refusal = Refusal(response.status_code, **response.json()["error"])
    if refusal.retry_after_ms is None:
        assert "retry-after" not in response.headers
    else:
        assert int(response.headers["retry-after"]) == math.ceil(refusal.retry_after_ms / 1000)
    return refusal


def plain(value: Any) -> Any:
    """A value of ``critiq.types`` as REST writes it."""
    if isinstance(value, CritiqError):
        retry = None if value.retry_after is None else round(value.retry_after * 1000)
        return {"code": value.code, "message": value.message, "field": value.field, "retry_after_ms": retry}
    if dataclasses.is_dataclass(value):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def to_json(message: Any) -> dict[str, Any]:
    """The REST body that says the same as a request of the contract."""
    body: dict[str, Any] = {}
    if isinstance(message, scoring_pb2.Image):
        kind = message.WhichOneof("source")
        if kind == "encoded":
            body["base64"] = _base64(message.encoded)
        elif kind == "raw":
            raw = message.raw
            body["raw"] = {
                "base64": _base64(raw.data),
                "shape": list(raw.shape),
                "dtype": "float32" if raw.dtype == scoring_pb2.RawImage.DTYPE_FLOAT32 else "uint8",
                "layout": "chw" if raw.layout == scoring_pb2.RawImage.LAYOUT_CHW else "hwc",
            }
        return body
    if isinstance(message, scoring_pb2.ScoreBatchRequest):
        return {"items": [{"id": item.id, **to_json(item.request)} for item in message.items]}
    body = {"prompt": message.prompt, **_target(message)}
    if isinstance(message, scoring_pb2.ScoreRequest):
        body["image"] = to_json(message.image)
    if isinstance(message, scoring_pb2.RankRequest):
        body |= {"images": [to_json(image) for image in message.images], "top_k": message.top_k}
        body |= {"diversity": message.diversity, "embedding": message.embedding}
        body["thresholds"] = [dataclasses.asdict(wire.threshold_from_proto(entry)) for entry in message.thresholds]
    if isinstance(message, scoring_pb2.CompareRequest):
        body |= {"first": to_json(message.first), "second": to_json(message.second)}
    return body


def _target(message: Any) -> dict[str, Any]:
    target = message.target
    priority = "bulk" if message.priority == scoring_pb2.PRIORITY_BULK else "interactive"
    return {
        "model": target.model,
        "version": target.version,
        "dimensions": list(target.dimensions),
        "priority": priority,
    }


def _json_request(message: Message) -> dict[str, Any]:
    return {"content": json.dumps(to_json(message)), "headers": {"content-type": "application/json"}}


def _protobuf_request(message: Message) -> dict[str, Any]:
    return {"content": message.SerializeToString(), "headers": {"content-type": PROTOBUF}}


def _form_request(message: Any) -> dict[str, Any]:
    if isinstance(message, scoring_pb2.ScoreBatchRequest):
        fields = _form_fields(message.items[0].request)
        fields["prompt"] = [item.request.prompt for item in message.items]
        images = [("image", item.request.image) for item in message.items]
    elif isinstance(message, scoring_pb2.RankRequest):
        fields = {**_form_fields(message), "top_k": str(message.top_k), "diversity": str(message.diversity)}
        thresholds = [wire.threshold_from_proto(entry) for entry in message.thresholds]
        fields["at_least"] = [f"{entry.dimension}:{entry.scale}={entry.at_least}" for entry in thresholds]
        fields["embedding"] = message.embedding
        images = [("image", image) for image in message.images]
    elif isinstance(message, scoring_pb2.CompareRequest):
        fields = _form_fields(message)
        images = [("first", message.first), ("second", message.second)]
    else:
        fields = _form_fields(message)
        images = [("image", message.image)]
    return {"data": fields, "files": [(name, ("picture", image.encoded)) for name, image in images]}


def _form_fields(message: Any) -> dict[str, Any]:
    fields = {"prompt": message.prompt, **_target(message)}
    return {**fields, "dimensions": ",".join(fields["dimensions"])}


def _file_request(message: Any) -> dict[str, Any]:
    headers = {"content-type": "application/octet-stream"}
    return {"content": message.image.encoded, "params": _form_fields(message), "headers": headers}


FACES: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "grpc": lambda message: {},
    "json": _json_request,
    "protobuf": _protobuf_request,
    "form": _form_request,
    "file": _file_request,
}


def takes(face: str, message: Any) -> bool:
    """Whether ``message`` can be said through ``face``."""
    if face == "file":
        return isinstance(message, scoring_pb2.ScoreRequest) and message.image.WhichOneof("source") == "encoded"
    if face == "form":
        return all(image.WhichOneof("source") == "encoded" for image in _images(message)) and bool(_images(message))
    return True


def _images(message: Any) -> list[Any]:
    if isinstance(message, scoring_pb2.ScoreBatchRequest):
        return [item.request.image for item in message.items]
    if isinstance(message, scoring_pb2.RankRequest):
        return list(message.images)
    if isinstance(message, scoring_pb2.CompareRequest):
        return [message.first, message.second]
    return [message.image]


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
