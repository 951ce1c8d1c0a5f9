"""From a torch module to an ONNX graph that is known to agree with it, and from graphs to a bundle."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

OPSET = 20
"""The newest that TensorRT builds with dynamic batches; from 23 on the exporter emits an Attention operator."""
BATCHES = (1, 2, 5)
_SMALLEST = 1024
"""Weights of fewer elements stay float32."""


class ExportError(RuntimeError):
    """The exported graph does not compute what the module computes."""


def export_graph(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    path: Path,
    *,
    tolerance: float = 2e-4,
) -> None:
    """Writes ``module`` as ONNX with a free first axis and checks it at batches of 1, 2 and 5.

    ``example`` holds at least two items along the first axis. Raises ``ExportError`` where onnxruntime differs from
    torch by more than ``tolerance`` (relative to the largest output).
    """
    module.eval()
    batch = torch.export.Dim("batch")
    with torch.inference_mode(), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        torch.onnx.export(
            module,
            example,
            path,
            dynamo=True,
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=tuple({0: batch} for _ in example),
            external_data=False,
            verbose=False,
        )
    check_graph(module, example, inputs, path, tolerance=tolerance)


def store_weights_as_half(path: Path) -> None:
    """Rewrites the graph at ``path`` with its large weights stored as float16; arithmetic stays float32.

    onnxruntime casts them back once, when it loads the graph.
    """
    model = onnx.load(path)
    graph = model.graph
    weights = {node.input[1] for node in graph.node if node.op_type in ("Conv", "MatMul")}
    for tensor in list(graph.initializer):
        small = int(np.prod(tensor.dims)) < _SMALLEST
        if small or tensor.name not in weights or tensor.data_type != onnx.TensorProto.FLOAT:
            continue
        half = onnx.numpy_helper.from_array(
            onnx.numpy_helper.to_array(tensor).astype(np.float16), f"{tensor.name}_half"
        )
        graph.initializer.remove(tensor)
        graph.initializer.append(half)
        graph.node.insert(0, onnx.helper.make_node("Cast", [half.name], [tensor.name], to=onnx.TensorProto.FLOAT))
    del graph.value_info[:]  # the exporter lists initialisers there, with types that no longer hold
    onnx.checker.check_model(model)
    onnx.save(model, path)


def strip_traces(path: Path) -> None:
    """Rewrites the graph at ``path`` without the exporter's notes, which hold the paths of the machine it ran on."""
    model = onnx.load(path)
    graph = model.graph
    noted: list[Any] = [model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for item in noted:
        del item.metadata_props[:]
        item.doc_string = ""
    onnx.checker.check_model(model)
    onnx.save(model, path)


def check_graph(
    module: nn.Module, example: tuple[Tensor, ...], inputs: list[str], path: Path, *, tolerance: float
) -> None:
    """Raises ``ExportError`` where the graph at ``path`` and ``module`` disagree at a batch of 1, 2 or 5."""
    onnx.checker.check_model(path)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in BATCHES:
        repeated = tuple(torch.cat([item] * (size // item.shape[0] + 1))[:size] for item in example)
        with torch.inference_mode():
            expected = module(*repeated)
        expected = expected if isinstance(expected, tuple) else (expected,)
        found = session.run(None, {name: item.numpy() for name, item in zip(inputs, repeated, strict=True)})
        for wanted, got in zip(expected, found, strict=True):
            scale = max(1.0, float(wanted.abs().max()))
            error = float(np.abs(wanted.numpy() - got).max()) / scale
            if wanted.numpy().shape != got.shape or error > tolerance:
                raise ExportError(f"{path.name}, batch {size}: shape {got.shape}, relative error {error:.2e}")
