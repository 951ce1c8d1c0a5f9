"""Reduced precisions of an fp32 graph: float16 throughout, or int8 weights with activations quantised on the fly."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Literal

import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.transformers.float16 import convert_float_to_float16

from critiq_exporters.core.graphs import is_large, save_graph

Precision = Literal["fp32", "fp16", "int8"]

NOTES: dict[Precision, str] = {
    "fp32": "reference",
    "fp16": "weights and activations in float16; softmax and the statistics of layer norms in float32",
    "int8": "linear layers with int8 weights (one scale a channel) and activations quantised as they come; one picture "
    "a batch, because the scale of an activation is that of its whole batch; onnxruntime only, not TensorRT",
}


def convert(precision: Precision, source: Path, target: Path) -> None:
    """Writes the fp32 graph ``source`` at another precision, with the same inputs and outputs."""
    model = onnx.load(str(source))
    if precision == "fp16":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights below float16's smallest number
            # Shapes are noted in the graph already, and inferring them takes a model below 2 GiB.
            half = convert_float_to_float16(
                model, keep_io_types=True, op_block_list=["Softmax"], disable_shape_infer=is_large(model)
            )
            save_graph(half, target)
        return
    # The exporter lists weights there too, with the shapes that they have before they are quantised.
    del model.graph.value_info[:]
    logging.disable(logging.WARNING)  # it recommends a preparation that changes nothing here
    try:
        quantize_dynamic(
            model,
            str(target),
            weight_type=QuantType.QInt8,
            per_channel=True,
            op_types_to_quantize=["MatMul", "Gemm"],
            nodes_to_exclude=_products_with_vectors(model),
        )
    finally:
        logging.disable(logging.NOTSET)


def _products_with_vectors(model: onnx.ModelProto) -> list[str]:
    """Names of nodes that onnxruntime quantises and then cannot run."""
    vectors = {entry.name for entry in model.graph.initializer if len(entry.dims) < 2}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and vectors & set(node.input)]
