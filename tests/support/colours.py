"""A bundle with an image encoder whose embedding is easy to foresee: the mean colour."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from critiq_server.bundles.manifest import ImageInput, ResizeView, Stage, StageInput
from tests.support.bundles import _dimension, _save, _write_manifest


def write_colours(root: Path, name: str = "colours") -> Path:
    """A bundle with the dimensions ``brightness`` (mean of all samples, 0..1) and ``red`` (mean red, 0..1).

    Both read the stage ``encoder``; its output ``colour`` is the mean red, green and blue, 0..1.
    """
    directory = root / name / "1"
    directory.mkdir(parents=True)
    _save(directory / "encoder.onnx", _encoder())
    _save(directory / "heads.onnx", _heads())
    colour = StageInput(stage="encoder", output="colour")
    view = ImageInput(view=ResizeView(height=8, width=8))
    stages = [
        Stage(name="encoder", graph="encoder.onnx", inputs={"image": view}, outputs=["colour"]),
        Stage(name="heads", graph="heads.onnx", inputs={"colour": colour}, outputs=["brightness", "red"]),
    ]
    dimensions = [_dimension(name, "heads", maximum=1.0) for name in ("brightness", "red")]
    return _write_manifest(directory, name, "1", stages, dimensions, {})


def _encoder() -> onnx.GraphProto:
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["colour"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2], np.int64), "axes"),
        numpy_helper.from_array(np.array(255.0, np.float32), "full"),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])]
    outputs = [helper.make_tensor_value_info("colour", TensorProto.FLOAT, ["batch", 3])]
    return helper.make_graph(nodes, "encoder", inputs, outputs, constants)


def _heads() -> onnx.GraphProto:
    nodes = [
        helper.make_node("ReduceMean", ["colour", "axes"], ["brightness"], keepdims=0),
        helper.make_node("Gather", ["colour", "first"], ["red"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([1], np.int64), "axes"),
        numpy_helper.from_array(np.array(0, np.int64), "first"),
    ]
    inputs = [helper.make_tensor_value_info("colour", TensorProto.FLOAT, ["batch", 3])]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("brightness", "red")]
    return helper.make_graph(nodes, "heads", inputs, outputs, constants)
