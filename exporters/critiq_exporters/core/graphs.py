"""A torch module -> an ONNX graph that TensorRT and onnxruntime both read."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn

from critiq_exporters.core.evaluate import Arrays
from critiq_server.bundles.manifest import ImageInput, Input, NativeView, PromptInput, Stage

OPSET = 20
"""The newest that TensorRT builds with dynamic batches; from 23 on the exporter emits an Attention operator."""

LARGEST_MESSAGE = 1_000_000_000
"""Bytes of weights that a graph file holds at the most. One protobuf message must stay below 2 GiB, and from here on a
file beside it is written and read faster, in less memory."""
_DIGEST = "weights_sha256"


class ExportError(RuntimeError):
    """The model cannot be exported, or what came out does not compute what went in."""


def write_graph(module: nn.Module, stage: Stage, example: Arrays, path: Path) -> None:
    """Writes ``module`` as ONNX with the batch, the length of prompts, and the sides of a native view left open.

    ``example`` holds the stage's inputs with two rows: a size of one would be taken for a constant. Raises
    ``ExportError`` where torch cannot trace the module.
    """
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = tuple({0: batch, **_open_axes(source, length)} for source in stage.inputs.values())
    with torch.inference_mode(), _quiet():
        try:
            torch.onnx.export(
                module,
                tuple(torch.from_numpy(example[name]) for name in stage.inputs),
                path,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(stage.inputs),
                output_names=list(stage.outputs),
                dynamic_shapes=shapes,
                external_data=_bytes_of(module) > LARGEST_MESSAGE,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            raise ExportError(f"stage {stage.name!r} cannot be exported: {error}") from error
    onnx.checker.check_model(str(path))


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Writes ``model``; where its weights are too many for one message, they go to a file beside it.

    The graph then carries their SHA-256: a stage's outputs are named by the digest of its graph file, which must change
    with the weights.
    """
    weights = weights_of(path)
    weights.unlink(missing_ok=True)  # onnx would append to it
    if not is_large(model):
        onnx.save(model, str(path))
        return
    onnx.save(model, str(path), save_as_external_data=True, location=weights.name)
    save_description(onnx.load(str(path), load_external_data=False), path)


def save_description(described: onnx.ModelProto, path: Path) -> None:
    """Writes a graph whose weights, if they are not its own, already lie in the file beside it."""
    if (weights := weights_of(path)).exists():
        with weights.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        onnx.helper.set_model_props(described, {_DIGEST: digest})
    onnx.save(described, str(path))


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the weights of ``model``, which must be in memory, are too many for one message."""
    return sum(len(weight.raw_data) for weight in model.graph.initializer) > LARGEST_MESSAGE


def weights_of(path: Path) -> Path:
    """The file beside a graph that holds its weights, where they are too many for the graph's own."""
    return path.with_name(f"{path.name}.data")


def graph_bytes(path: Path) -> int:
    """Size of a graph with its weights, wherever they lie."""
    return sum(file.stat().st_size for file in (path, weights_of(path)) if file.exists())


def _bytes_of(module: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def _open_axes(source: Input, length: Any) -> dict[int, Any]:
    if isinstance(source, PromptInput):
        return {1: length}
    if isinstance(source, ImageInput) and isinstance(source.view, NativeView):
        view = source.view
        low, high = (bound // view.multiple for bound in (view.shorter_min, view.longer_max))
        rows, columns = (torch.export.Dim(name, min=low, max=high) for name in ("rows", "columns"))
        return {1: view.multiple * rows, 2: view.multiple * columns} if view.multiple > 1 else {1: rows, 2: columns}
    return {}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks about packages that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
