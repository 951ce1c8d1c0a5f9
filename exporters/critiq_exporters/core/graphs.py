"""A torch module -> an ONNX graph that TensorRT and onnxruntime both read."""

from __future__ import annotations

import contextlib
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
                external_data=False,
                verbose=False,
            )
        except (torch.onnx.OnnxExporterError, RuntimeError) as error:
            raise ExportError(f"stage {stage.name!r} cannot be exported: {error}") from error
    onnx.checker.check_model(str(path))


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
