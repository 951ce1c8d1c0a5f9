"""Bundles that cost a known amount of work. Their weights are random: they are for timing, not for judging pictures."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from critiq_server.bundles.manifest import (
    MANIFEST_FILE,
    Dimension,
    ImageInput,
    Licence,
    Manifest,
    Provenance,
    ResizeView,
    Simulated,
    Stage,
)

CNN_SIDE = 224
CNN_BATCH = 4
"""Where a picture costs this network least on a CPU."""

FREE_SIDE = 8
SIMULATED = Simulated(batch_ms=5.0, item_ms=0.1)
SIMULATED_BATCH = 32

_WIDTHS = (32, 64, 64, 64, 128, 128, 128, 256, 256, 256)
"""Output channels of the 3x3 convolutions; each that widens also halves the resolution."""


def write_cnn(root: Path, name: str = "cnn") -> None:
    """A plain convolutional network on a 224x224 view: about 8 ms a picture on one core."""
    generator = np.random.default_rng(0)
    nodes: list[NodeProto] = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["channels_first"], perm=[0, 3, 1, 2]),
    ]
    constants = [numpy_helper.from_array(np.array(1 / 255, np.float32), "scale")]
    tensor, before = "channels_first", 3
    for index, width in enumerate(_WIDTHS):
        weights = generator.normal(0, (2 / (9 * before)) ** 0.5, (width, before, 3, 3)).astype(np.float32)
        constants.append(numpy_helper.from_array(weights, f"weights_{index}"))
        stride = 1 if width == before else 2
        inputs = [tensor, f"weights_{index}"]
        nodes.append(helper.make_node("Conv", inputs, [f"conv_{index}"], strides=[stride, stride], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"conv_{index}"], [f"relu_{index}"]))
        tensor, before = f"relu_{index}", width
    constants.append(numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"))
    nodes.append(helper.make_node("ReduceMean", [tensor, "axes"], ["value"], keepdims=0))
    graph = _graph(nodes, constants, CNN_SIDE)
    stage = Stage(
        name="network",
        graph="network.onnx",
        inputs={"image": ImageInput(view=ResizeView(height=CNN_SIDE, width=CNN_SIDE))},
        outputs=["value"],
        max_batch=CNN_BATCH,
    )
    _write(root / name / "1", name, stage, graph)


def write_free(root: Path, name: str = "free") -> None:
    """A mean over an 8x8 view: what is left is the server's own cost."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["value"], keepdims=0),
    ]
    graph = _graph(nodes, [numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")], FREE_SIDE)
    stage = Stage(
        name="mean",
        graph="mean.onnx",
        inputs={"image": ImageInput(view=ResizeView(height=FREE_SIDE, width=FREE_SIDE))},
        outputs=["value"],
        max_batch=32,
        cache=False,
    )
    _write(root / name / "1", name, stage, graph)


def write_simulated(
    root: Path, name: str = "simulated", simulated: Simulated = SIMULATED, max_batch: int = SIMULATED_BATCH
) -> None:
    """The simulated accelerator behind an 8x8 view."""
    stage = Stage(
        name="device",
        runtime="simulated",
        simulated=simulated,
        inputs={"image": ImageInput(view=ResizeView(height=FREE_SIDE, width=FREE_SIDE))},
        outputs=["value"],
        max_batch=max_batch,
        cache=False,
    )
    _write(root / name / "1", name, stage, None)


def _graph(nodes: list[NodeProto], constants: list[TensorProto], side: int) -> GraphProto:
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", side, side, 3])]
    outputs = [helper.make_tensor_value_info("value", TensorProto.FLOAT, ["batch"])]
    return helper.make_graph(nodes, "graph", inputs, outputs, constants)


def _write(directory: Path, name: str, stage: Stage, graph: GraphProto | None) -> None:
    directory.mkdir(parents=True)
    files = {}
    if graph is not None and stage.graph is not None:
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.checker.check_model(model)
        data = model.SerializeToString()
        (directory / stage.graph).write_bytes(data)
        files[stage.graph] = hashlib.sha256(data).hexdigest()
    manifest = Manifest(
        name=name,
        version="1",
        family="benchmark",
        title=f"Benchmark: {name}",
        description="Random weights, for timing only.",
        stages=[stage],
        dimensions=[
            Dimension(name="value", title="Value", description="Means nothing.", stage=stage.name, output="value")
        ],
        licence=Licence(code="Apache-2.0", weights="Apache-2.0"),
        provenance=Provenance(created="2026-01-01", command="benchmarks/serving.py"),
        files=files,
    )
    (directory / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2))
