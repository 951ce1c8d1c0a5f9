"""Where a graph at reduced precision leaves its fp32 reference: error of each layer's output on one picture."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from pydantic import BaseModel, ConfigDict

from critiq_exporters.core.evaluate import Arrays, open_session
from critiq_exporters.core.graphs import save_graph

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of a node: the torch modules that it came from, outermost first, as a Python list."""
_WATCHED = {"MatMul", "Gemm", "Conv", "LayerNormalization", "Softmax", "Gelu", "Add", "Mul"}


class LayerDrift(BaseModel):
    """Error of one layer's output, as a share of the output's root mean square."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    layer: str
    operator: str
    error: float
    step: float
    """How much larger the error is than that of the watched layer before it."""
    largest: float
    """Largest magnitude of the output in the reference."""


def layer_drift(reference: Path, variant: Path, inputs: Arrays, threads: int) -> list[LayerDrift]:
    """All layers, those first where the error grows most. Both graphs run whole, layer outputs kept."""
    model, other = onnx.load(str(reference)), onnx.load(str(variant))
    there = {name for node in other.graph.node for name in node.output}
    watched = [node for node in model.graph.node if node.op_type in _WATCHED and node.output[0] in there]
    names = [node.output[0] for node in watched]
    if not names:
        return []
    expected, found = (_outputs_of(graph, names, inputs, threads) for graph in (model, other))
    drifts = []
    before = 0.0
    for node, wanted, got in zip(watched, expected, found, strict=True):
        error = _relative_error(wanted, got)
        drifts.append(
            LayerDrift(
                layer=_layer(node),
                operator=node.op_type,
                error=error,
                step=error - before,
                largest=float(np.abs(wanted).max()),
            )
        )
        before = error
    return sorted(drifts, key=lambda drift: -drift.step)


def _outputs_of(
    model: onnx.ModelProto, names: Sequence[str], inputs: Arrays, threads: int
) -> list[NDArray[np.float32]]:
    kept = {output.name for output in model.graph.output}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in kept)
    # Through a file: a graph with many weights is too large for one message.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "watched.onnx"
        save_graph(model, path)
        values = open_session(path, threads).run(list(names), dict(inputs))
    return [np.asarray(value, np.float32) for value in values]


def _relative_error(expected: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    scale = float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))
    return float(np.sqrt(np.mean(np.square(found - expected, dtype=np.float64)))) / max(scale, 1e-12)


def _layer(node: onnx.NodeProto) -> str:
    for entry in node.metadata_props:
        if entry.key == SCOPES:
            return ".".join(ast.literal_eval(entry.value)[-2:-1]) or str(node.name)
    return str(node.name)
