"""A linear head on a stage's output as one more dimension of a bundle: an ONNX graph and records of what it gives."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from critiq_evaluation.calibration.features import Features
from critiq_evaluation.calibration.ridge import Head
from critiq_evaluation.errors import EvaluationError
from critiq_server.bundles.golden import compute_raw, feature_entry
from critiq_server.bundles.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    Calibration,
    Dimension,
    Manifest,
    Reference,
    Stage,
    StageInput,
)
from critiq_server.bundles.model import load_model
from critiq_server.runtime.onnx import RuntimeSettings

_OPSET, _IR_VERSION = 18, 10
_TOLERANCE_OF_SCALE = 1e-4
_ELEMENTS = {"FP32": "FLOAT", "FP16": "FLOAT16", "FP64": "DOUBLE"}
"""ONNX's names of the Open Inference Protocol's types."""


def require_onnx() -> Any:
    """The module ``onnx``. Raises :class:`EvaluationError` where it is not installed."""
    try:
        import onnx
    except ImportError as error:
        raise EvaluationError("writing a head needs onnx: pip install 'critiq[export]'") from error
    return onnx


def feature_of(manifest: Manifest, name: str) -> tuple[Stage, str]:
    """``STAGE.OUTPUT``, or ``STAGE`` if it has only one.

    Raises :class:`EvaluationError` if there is no such output; the message lists all that there are.
    """
    for stage in manifest.stages:
        for output in stage.outputs:
            if name == f"{stage.name}.{output}" or (name == stage.name and len(stage.outputs) == 1):
                if "image" not in manifest.roots(stage.name):
                    raise EvaluationError(f"--feature {name!r}: that stage does not see the picture; choose another")
                return stage, output
    known = ", ".join(f"{stage.name}.{output}" for stage in manifest.stages for output in stage.outputs)
    raise EvaluationError(f"--feature {name!r}: the bundle has no such output of a stage; it has {known}")


def check_name(manifest: Manifest, name: str) -> None:
    """Raises :class:`EvaluationError` if a dimension or a stage has the name that the head would get."""
    if any(dimension.name == name for dimension in manifest.dimensions):
        raise EvaluationError(f"--name {name!r}: the bundle has a dimension of that name; choose another")
    if any(entry.name == stage_name(name) for entry in manifest.stages):
        raise EvaluationError(f"--name {name!r}: the bundle has a stage {stage_name(name)!r}; choose another name")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,50}", name):
        raise EvaluationError(f"--name {name!r}: small letters, digits, _ . and - are possible, at most 51")


def with_head(
    manifest: Manifest,
    name: str,
    stage: Stage,
    output: str,
    bounds: tuple[float, float],
    reference: Reference,
    labels: int,
) -> Manifest:
    """The manifest with the dimension ``name`` read from a new stage; see :func:`check_name`."""
    head = stage_name(name)
    low, high = bounds
    made = Stage(
        name=head,
        graph=f"{head}.onnx",
        inputs={"feature": StageInput(stage=stage.name, output=output)},
        outputs=["rating"],
        max_batch=stage.max_batch,
        cache=False,
    )
    dimension = Dimension(
        name=name,
        title=name.replace("_", " ").capitalize(),
        description=f"Rating of {low:g} to {high:g} that people would give: a linear regressor on "
        f"{stage.name}.{output}, fitted to {labels} ratings. Raw values may lie outside.",
        stage=head,
        output="rating",
        needs_prompt="prompt" in manifest.roots(stage.name),
        tolerance=_TOLERANCE_OF_SCALE * (high - low),
        calibration=Calibration(
            raw=[low, high],
            calibrated=[0.0, 1.0],
            method=f"the ratings' scale: rating = {low:g} + {high - low:g} x calibrated",
        ),
        reference=reference,
    )
    update = {"stages": [*manifest.stages, made], "dimensions": [*manifest.dimensions, dimension]}
    return manifest.model_copy(update=update)


def stage_name(dimension: str) -> str:
    """Of the head that gives a dimension."""
    return f"head-{dimension}"


def add_head(folder: Path, manifest: Manifest, dimension: str, features: Features, head: Head) -> None:
    """Writes the head's graph into the folder of a bundle, and what it gives for the golden pictures."""
    onnx = require_onnx()
    graph = folder / f"{stage_name(dimension)}.onnx"
    onnx.save(_graph(onnx, features, head), str(graph))
    if (folder / GOLDEN_FILE).exists():
        _record(folder, manifest, dimension)


def _graph(onnx: Any, features: Features, head: Head) -> Any:
    helper, floats = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node("Cast", ["feature"], ["float"], to=floats),
        helper.make_node("Flatten", ["float"], ["flat"], axis=1),
        helper.make_node("Gemm", ["flat", "weights", "intercept"], ["column"]),
        helper.make_node("Flatten", ["column"], ["rating"], axis=1),
    ]
    constants = [
        onnx.numpy_helper.from_array(head.weights.astype(np.float32)[:, None], "weights"),
        onnx.numpy_helper.from_array(np.array([head.intercept], np.float32), "intercept"),
    ]
    kind = getattr(onnx.TensorProto, _ELEMENTS[features.datatype])
    inputs = [helper.make_tensor_value_info("feature", kind, ["batch", *features.shape])]
    outputs = [helper.make_tensor_value_info("rating", floats, ["batch", 1])]
    model = helper.make_model(
        helper.make_graph(nodes, "linear head", inputs, outputs, constants),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
    )
    onnx.checker.check_model(model)
    return model


def _record(folder: Path, manifest: Manifest, dimension: str) -> None:
    """Adds a column to the golden records: what the server's own code computes with the new graph."""
    golden = folder / GOLDEN_FILE
    with np.load(golden, allow_pickle=False) as file:
        entries = {name: file[name] for name in file.files}
    files = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    described = folder / MANIFEST_FILE
    described.write_text(manifest.model_copy(update={"files": files}).model_dump_json(), "utf-8")
    model = load_model(folder, RuntimeSettings(provider="cpu"))
    described.unlink()
    prompts = [str(prompt) for prompt in entries["prompts"]]
    images = [entries[f"image_{number}"] for number in range(len(prompts))]
    features = {name: entries[feature_entry(name)] for name in manifest.asks_lmms}
    found = compute_raw(model, images, prompts, [dimension], features)
    entries["dimensions"] = np.array([*(str(name) for name in entries["dimensions"]), dimension])
    entries["expected"] = np.concatenate([entries["expected"], found], axis=1)
    np.savez_compressed(golden, allow_pickle=False, **entries)
