"""A torch module -> an ONNX graph that TensorRT and onnxruntime both read."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path

import onnx
import torch
from torch import nn

from critiq_exporters.core.evaluate import Arrays
from critiq_server.bundles.manifest import PromptInput, Stage

OPSET = 20
"""The newest that TensorRT builds with dynamic batches; from 23 on the exporter emits an Attention operator."""


class ExportError(RuntimeError):
    """The model cannot be exported, or what came out does not compute what went in."""


def write_graph(module: nn.Module, stage: Stage, example: Arrays, path: Path) -> None:
    """Writes ``module`` as ONNX with the batch, and the length of prompts, left open.

    ``example`` holds the stage's inputs with two rows: a size of one would be taken for a constant. Raises
    ``ExportError`` where torch cannot trace the module.
    """
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    shapes = tuple(
        {0: batch, 1: length} if isinstance(source, PromptInput) else {0: batch} for source in stage.inputs.values()
    )
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
