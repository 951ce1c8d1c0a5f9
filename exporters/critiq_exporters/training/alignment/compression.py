"""Stores the weights of an ONNX graph in fewer bytes; arithmetic stays float32.

Matrices become int8 with one scale an output channel (a row, for look-up tables), all else float16: in a convolutional
network the errors of int8 grow from layer to layer and moved scores by up to 0.09. The graph turns them back to
float32; onnxruntime does that once, at load, except for look-up tables, of which only the rows that are looked up are
turned back.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

_SMALLEST = 4096
"""Initialisers of fewer elements (biases, norms) stay float32."""


def compress_weights(path: Path) -> None:
    """Rewrites the graph file ``path`` in place. Raises ``onnx.checker.ValidationError`` if the result is not valid."""
    model = onnx.load(path)
    graph = model.graph
    added: list[onnx.NodeProto] = []
    for tensor in list(graph.initializer):
        if tensor.data_type != TensorProto.FLOAT or int(np.prod(tensor.dims)) < _SMALLEST:
            continue
        weight = numpy_helper.to_array(tensor)
        uses = [node for node in graph.node if tensor.name in node.input]
        graph.initializer.remove(tensor)
        if weight.ndim == 2 and all(node.op_type == "Gather" and node.input[0] == tensor.name for node in uses):
            _store_table(graph, tensor.name, weight, uses)
        elif weight.ndim == 2 and all(node.op_type in ("MatMul", "Gemm") for node in uses):
            axis = 0 if any(_transposed(node) for node in uses) else 1
            added += _store_int8(graph, tensor.name, weight, axis)
        else:
            added += _store_float16(graph, tensor.name, weight)
    for node in reversed(added):
        graph.node.insert(0, node)
    del graph.value_info[:]  # the exporter lists initialisers there, with types that no longer hold
    onnx.checker.check_model(model)
    onnx.save(model, path)


@torch.no_grad()
def round_as_stored(module: nn.Module) -> None:
    """Gives ``module`` the weights of its compressed graph, so that what is fitted to its outputs stays true."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    matrices = {id(part.weight) for part in module.modules() if isinstance(part, nn.Linear)}
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.numel() < _SMALLEST or not tensor.is_floating_point():
            continue
        if id(tensor) in tables or id(tensor) in matrices or name.endswith("class_embeddings"):
            values, scale = quantise(tensor.numpy(), 1 if name.endswith("class_embeddings") else 0)
            tensor.copy_(torch.from_numpy(values * scale))
        else:
            tensor.copy_(tensor.half().float())


def quantise(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 with one float32 scale for each index of ``axis``; ``weight`` is nearly ``int8 * scale``."""
    others = tuple(other for other in range(weight.ndim) if other != axis)
    scale = np.abs(weight).max(axis=others, keepdims=True).astype(np.float32) / 127.0
    scale[scale == 0.0] = 1.0
    return np.rint(weight / scale).astype(np.int8), scale


def _transposed(node: onnx.NodeProto) -> bool:
    return node.op_type == "Gemm" and any(a.name == "transB" and a.i == 1 for a in node.attribute)


def _store_float16(graph: onnx.GraphProto, name: str, weight: NDArray[np.float32]) -> list[onnx.NodeProto]:
    graph.initializer.append(numpy_helper.from_array(weight.astype(np.float16), f"{name}_half"))
    return [helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT)]


def _store_int8(graph: onnx.GraphProto, name: str, weight: NDArray[np.float32], axis: int) -> list[onnx.NodeProto]:
    values, scale = quantise(weight, axis)
    graph.initializer.append(numpy_helper.from_array(values, f"{name}_int8"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    return [
        helper.make_node("Cast", [f"{name}_int8"], [f"{name}_whole"], to=TensorProto.FLOAT),
        helper.make_node("Mul", [f"{name}_whole", f"{name}_scale"], [name]),
    ]


def _store_table(graph: onnx.GraphProto, name: str, table: NDArray[np.float32], uses: list[onnx.NodeProto]) -> None:
    values, scale = quantise(table, axis=0)
    graph.initializer.append(numpy_helper.from_array(values, f"{name}_int8"))
    graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
    for node in uses:
        rows, output = node.input[1], node.output[0]
        place = list(graph.node).index(node)
        graph.node.remove(node)
        replacement = [
            helper.make_node("Gather", [f"{name}_int8", rows], [f"{output}_int8"], axis=0),
            helper.make_node("Gather", [f"{name}_scale", rows], [f"{output}_scale"], axis=0),
            helper.make_node("Cast", [f"{output}_int8"], [f"{output}_whole"], to=TensorProto.FLOAT),
            helper.make_node("Mul", [f"{output}_whole", f"{output}_scale"], [output]),
        ]
        for offset, new in enumerate(replacement):
            graph.node.insert(place + offset, new)
