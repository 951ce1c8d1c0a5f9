"""Outputs of one stage of a served model for many pictures, over the Open Inference Protocol (gRPC)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from numpy.typing import NDArray

from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.scoring import Asked
from critiq_evaluation.statistics.arrays import Floats
from critiq_server.api.oip.inference import service_pb2

_CALL_PICTURES, _CALL_BYTES = 16, 16_000_000
_DTYPES = {"FP32": np.float32, "FP16": np.float16, "FP64": np.float64}
_UNLIMITED = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]


@dataclass(frozen=True)
class Features:
    """``values`` are float64 ``[pictures, width]``, flat, of the pictures in ``asked``; others failed.

    ``shape`` and ``datatype`` (``FP32``) are those of one picture's output as the server gave it.
    """

    asked: tuple[Asked, ...]
    values: Floats
    shape: tuple[int, ...]
    datatype: str
    failures: tuple[str, ...]


def features_of(
    pictures: Sequence[Asked],
    images: Path,
    *,
    server: str,
    model: str,
    version: str,
    stage: str,
    output: str,
    with_prompts: bool,
    timeout: float = 120.0,
) -> Features:
    """Asks a server (``host:port`` of gRPC) for a stage's output, 16 pictures at a time.

    Raises:
        EvaluationError: the server refused or was not reached, the output is not of floats, its shape differs from
            picture to picture, or no picture could be read.
    """
    asked: list[Asked] = []
    rows: list[NDArray[Any]] = []
    failures: list[str] = []
    datatype = ""
    with grpc.insecure_channel(server, options=_UNLIMITED) as channel:
        call = channel.unary_unary(
            "/inference.GRPCInferenceService/ModelInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelInferResponse.FromString,
        )
        for batch in _batches(pictures, images, failures):
            request = _request(batch, f"{model}/{stage}", version, output, with_prompts)
            try:
                values, datatype, errors = _answer(call(request, timeout=timeout))
            except grpc.RpcError as error:
                raise EvaluationError(f"{model}/{stage}: {error.details()}") from error
            for at, (one, _) in enumerate(batch):
                if at in errors:
                    failures.append(f"{one.image}: {errors[at]}")
                else:
                    asked.append(one)
                    rows.append(values[at])
    if not rows:
        raise EvaluationError(f"none of the {len(pictures)} pictures has features; {failures[0] if failures else ''}")
    if len({row.shape for row in rows}) > 1:
        raise EvaluationError(
            f"{stage}.{output} has another shape for each size of picture; a linear head needs one of fixed width"
        )
    values = np.stack([row.reshape(-1) for row in rows]).astype(np.float64)
    return Features(tuple(asked), values, rows[0].shape, datatype, tuple(failures))


def _batches(pictures: Sequence[Asked], images: Path, failures: list[str]) -> Iterator[list[tuple[Asked, bytes]]]:
    batch: list[tuple[Asked, bytes]] = []
    size = 0
    for asked in pictures:
        if Path(asked.image).is_absolute() or ".." in Path(asked.image).parts:
            failures.append(f"{asked.image}: the path leads out of {images}")
            continue
        try:
            content = (images / asked.image).read_bytes()
        except OSError as error:
            failures.append(f"{asked.image}: {error.strerror}")
            continue
        if batch and (len(batch) == _CALL_PICTURES or size + len(content) > _CALL_BYTES):
            yield batch
            batch, size = [], 0
        batch.append((asked, content))
        size += len(content)
    if batch:
        yield batch


def _request(
    batch: Sequence[tuple[Asked, bytes]], model: str, version: str, output: str, with_prompts: bool
) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=model, model_version=version)
    columns = {"image": [content for _, content in batch]}
    if with_prompts:
        columns["prompt"] = [asked.prompt.encode() for asked, _ in batch]
    for name, cells in columns.items():
        tensor = request.inputs.add(name=name, datatype="BYTES", shape=[len(cells)])
        tensor.contents.bytes_contents.extend(cells)
    request.outputs.add(name=output)
    request.parameters["on_error"].string_param = "nan"
    return request


def _answer(response: Any) -> tuple[NDArray[Any], str, dict[int, str]]:
    tensor = response.outputs[0]
    if tensor.datatype not in _DTYPES:
        raise EvaluationError(f"{tensor.name} is of {tensor.datatype}; features have to be floats")
    dtype = np.dtype(_DTYPES[tensor.datatype]).newbyteorder("<")
    values = np.frombuffer(response.raw_output_contents[0], dtype).reshape(list(tensor.shape))
    errors = response.parameters["errors"].string_param if "errors" in response.parameters else ""
    return values, tensor.datatype, {int(at): str(why) for at, why in json.loads(errors or "{}").items()}
