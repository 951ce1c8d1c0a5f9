"""The Open Inference Protocol over REST, under ``/v2``. It translates; it decides nothing."""

from __future__ import annotations

import asyncio
import math
import re
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, Field, StrictInt
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from critiq.errors import Cancelled, CritiqError, InvalidArgument, TooLarge, Unavailable
from critiq_server.api import bodies
from critiq_server.api.disconnects import unless_gone
from critiq_server.api.oip import answering, models
from critiq_server.api.oip.models import ModelInfo
from critiq_server.api.oip.tensors import Tensor, encode
from critiq_server.service import Service
from critiq_server.telemetry.counters import ERRORS
from critiq_server.telemetry.faults import internal
from critiq_server.wording import quoted

HEADER_LENGTH = "Inference-Header-Content-Length"
"""Bytes of JSON at the beginning of a body, where binary data follows; without it the whole body is JSON."""

Endpoint = Callable[[Request], Awaitable[Response]]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputJson(_Body):
    """One input: ``data``, or ``binary_data_size`` bytes after the JSON."""

    name: str
    shape: tuple[StrictInt, ...]
    datatype: str
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class OutputJson(_Body):
    name: str
    parameters: dict[str, Any] = {}


class InferJson(_Body):
    id: str = ""
    parameters: dict[str, Any] = {}
    inputs: list[InputJson] = Field(min_length=1)
    outputs: list[OutputJson] = []


class IndexJson(_Body):
    ready: bool = False


class ChangeJson(_Body):
    parameters: dict[str, Any] = {}


def routes(service: Service, is_ready: Callable[[], bool]) -> list[BaseRoute]:
    """``/v2`` and what lies under it, to be added to an application that limits bodies."""
    face = _Face(service, is_ready)
    one = "/models/{name:path}"
    version = one + "/versions/{version}"
    inner: list[BaseRoute] = [
        Route("/health/live", _answering(face.live)),
        Route("/health/ready", _answering(face.ready)),
        Route("/repository/index", _answering(face.index), methods=["POST"]),
        Route("/repository" + one + "/load", _answering(face.load), methods=["POST"]),
        Route("/repository" + one + "/unload", _answering(face.unload), methods=["POST"]),
    ]
    # A name may hold a slash, so the longest paths come first.
    for path in (version, one):
        inner.append(Route(path + "/infer", _answering(face.infer), methods=["POST"]))
        inner.append(Route(path + "/ready", _answering(face.model_ready)))
        inner.append(Route(path + "/config", _answering(face.config)))
        inner.append(Route(path, _answering(face.model)))
    below = Starlette(routes=inner, exception_handlers={HTTPException: _no_such_path})
    return [Route("/v2", _answering(face.server)), Mount("/v2", below)]


class _Face:
    def __init__(self, service: Service, is_ready: Callable[[], bool]) -> None:
        self._service = service
        self._is_ready = is_ready
        self._limit = service.settings.limits.request_bytes

    async def server(self, request: Request) -> Response:
        return _json({"name": models.NAME, "version": models.VERSION, "extensions": models.EXTENSIONS})

    async def live(self, request: Request) -> Response:
        return _json({"live": True})

    async def ready(self, request: Request) -> Response:
        if not self._is_ready():
            raise Unavailable("the default model is not served")
        return _json({"ready": True})

    async def model_ready(self, request: Request) -> Response:
        name, version = _named(request)
        models.check_ready(self._service, name, version)
        return _json({"name": name, "ready": True})

    async def model(self, request: Request) -> Response:
        return _json(_metadata(models.describe(self._service, *_named(request))))

    async def config(self, request: Request) -> Response:
        return _json(_config(models.describe(self._service, *_named(request))))

    async def index(self, request: Request) -> Response:
        body = await _read(request, self._limit)
        asked = bodies.from_json(IndexJson, body or b"{}")
        return _json([asdict(entry) for entry in models.index(self._service, ready=asked.ready)])

    async def load(self, request: Request) -> Response:
        body = bodies.from_json(ChangeJson, await _read(request, self._limit) or b"{}")
        models.check_load_parameters(body.parameters)
        await self._service.models.load(_named(request)[0])
        return Response()

    async def unload(self, request: Request) -> Response:
        bodies.from_json(ChangeJson, await _read(request, self._limit) or b"{}")
        await self._service.models.unload(_named(request)[0])
        return Response()

    async def infer(self, request: Request) -> Response:
        name, version = _named(request)
        body = memoryview(await _read(request, self._limit))
        length = _header_length(request, len(body))
        asked = bodies.from_json(InferJson, bytes(body[:length]))
        inputs = _inputs(asked, body[length:])
        parameters = dict(asked.parameters)
        binary = _flag(parameters.pop("binary_data_output", False), "parameters.binary_data_output")
        wanted = {output.name: _binary(output, binary, at) for at, output in enumerate(asked.outputs)}
        question = answering.Request(
            name, version, asked.id, parameters, inputs, [output.name for output in asked.outputs]
        )
        work = answering.infer(self._service, question, bodies.timeout(request))
        return _respond(await unless_gone(request, work), wanted, binary)


def _inputs(asked: InferJson, data: memoryview) -> list[Tensor]:
    """The inputs, each with its part of the binary data after the JSON."""
    tensors = []
    start = 0
    for at, entry in enumerate(asked.inputs):
        place = f"inputs[{at}]"
        parameters = dict(entry.parameters)
        size = parameters.pop("binary_data_size", None)
        if parameters:
            raise InvalidArgument(
                f"the parameter {quoted(next(iter(parameters)))} is unknown here; known: binary_data_size",
                field=f"{place}.parameters",
            )
        values: memoryview | list[Any]
        if size is None:
            if entry.data is None:
                raise InvalidArgument("it has neither data nor the parameter binary_data_size", field=place)
            values = entry.data
        else:
            if entry.data is not None:
                raise InvalidArgument("it has data as well as the parameter binary_data_size", field=place)
            if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(data) - start:
                raise InvalidArgument(
                    f"binary_data_size is {quoted(str(size))}; {len(data) - start:,} bytes are left after the JSON",
                    field=place,
                )
            values = data[start : start + size]
            start += size
        tensors.append(Tensor(entry.name, entry.datatype, entry.shape, values))
    if start != len(data):
        raise InvalidArgument(
            f"{len(data) - start:,} bytes after the JSON belong to no input; check {HEADER_LENGTH} and binary_data_size"
        )
    return tensors


def _binary(output: OutputJson, default: bool, at: int) -> bool:
    parameters = dict(output.parameters)
    binary = _flag(parameters.pop("binary_data", default), f"outputs[{at}].parameters.binary_data")
    if parameters:
        raise InvalidArgument(
            f"the parameter {quoted(next(iter(parameters)))} is unknown here; known: binary_data",
            field=f"outputs[{at}].parameters",
        )
    return binary


def _flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidArgument(f"{quoted(str(value))} is not true or false", field=field)
    return value


def _respond(answer: answering.Answer, wanted: dict[str, bool], binary: bool) -> Response:
    """JSON; outputs that are wanted in binary follow it."""
    entries = []
    blobs = []
    for output in answer.outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.values.shape),
        }
        parameters: dict[str, Any] = dict(output.parameters)
        if wanted.get(output.name, binary):
            blob = encode(output.values)
            parameters["binary_data_size"] = len(blob)
            blobs.append(blob)
        else:
            entry["data"] = output.values.reshape(-1).tolist()
        entries.append(entry | ({"parameters": parameters} if parameters else {}))
    body = {
        "model_name": answer.model,
        "model_version": answer.version,
        **({"id": answer.id} if answer.id else {}),
        **({"parameters": answer.parameters} if answer.parameters else {}),
        "outputs": entries,
    }
    if not blobs:
        return _json(body)
    head = orjson.dumps(body)
    return Response(
        b"".join([head, *blobs]), headers={HEADER_LENGTH: str(len(head))}, media_type="application/octet-stream"
    )


def _metadata(model: ModelInfo) -> dict[str, Any]:
    def shown(tensors: Any) -> list[dict[str, Any]]:
        return [{"name": entry.name, "datatype": entry.datatype, "shape": entry.shape} for entry in tensors]

    return {
        "name": model.name,
        "versions": model.versions,
        "platform": models.NAME,
        "inputs": shown(model.inputs),
        "outputs": shown(model.outputs),
    }


def _config(model: ModelInfo) -> dict[str, Any]:
    inputs = [
        {
            "name": entry.name,
            "data_type": models.config_datatype(entry.datatype),
            "dims": entry.shape,
            "optional": entry.optional,
        }
        for entry in model.inputs
    ]
    outputs = [
        {"name": entry.name, "data_type": models.config_datatype(entry.datatype), "dims": entry.shape}
        for entry in model.outputs
    ]
    return {
        "name": model.name,
        "platform": models.NAME,
        "backend": models.NAME,
        "max_batch_size": 0,
        "input": inputs,
        "output": outputs,
    }


def _named(request: Request) -> tuple[str, str]:
    return request.path_params["name"], request.path_params.get("version", "")


def _header_length(request: Request, size: int) -> int:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return size
    if not re.fullmatch(r"[0-9]{1,12}", text) or int(text) > size:
        raise InvalidArgument(
            f"{quoted(text)} is not a number of bytes within the body, which has {size:,}", field=HEADER_LENGTH
        )
    return int(text)


async def _read(request: Request, limit: int) -> bytes:
    """The body, unpacked if it is compressed: then its size is limited once more."""
    body = await request.body()
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        return body
    if encoding not in ("gzip", "deflate"):
        raise InvalidArgument(f"{quoted(encoding)} is unknown; use gzip, deflate or none", field="Content-Encoding")
    return await asyncio.to_thread(_unpack, body, encoding, limit)


def _unpack(body: bytes, encoding: str, limit: int) -> bytes:
    unpacker = zlib.decompressobj(zlib.MAX_WBITS | 32)  # the header says which of the two it is
    try:
        unpacked = unpacker.decompress(body, limit + 1)
    except zlib.error as error:
        raise InvalidArgument(f"the body is not {encoding} data: {error}", field="Content-Encoding") from error
    if len(unpacked) > limit:
        raise TooLarge(f"the unpacked body has more than {limit} bytes, the limit; send less at once", field="body")
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidArgument(f"the body is not one whole piece of {encoding} data", field="Content-Encoding")
    return unpacked


def _answering(endpoint: Endpoint) -> Endpoint:
    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except CritiqError as error:
            return _error(error)
        except ClientDisconnect:
            return _error(Cancelled("the caller disconnected"))
        except Exception as error:
            return _error(internal(request.url.path, error))

    return answer


def _error(error: CritiqError) -> Response:
    ERRORS.labels("rest", error.code).inc()
    headers = {} if error.retry_after is None else {"Retry-After": str(math.ceil(error.retry_after))}
    return _json({"error": str(error)}, error.http_status, headers)


async def _no_such_path(request: Request, error: Exception) -> Response:
    status, detail = (error.status_code, error.detail) if isinstance(error, HTTPException) else (500, "")
    return _json({"error": f"{detail} ({request.method} {request.url.path[:200]})"}, status)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(orjson.dumps(value), status, headers, media_type=bodies.JSON)
