"""Small bundles made on the spot: real ONNX graphs that compute something easy to check."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer as HfTokenizer
from tokenizers import models, pre_tokenizers, processors

from critiq_server.bundles.manifest import (
    Calibration,
    Dimension,
    ImageInput,
    Licence,
    Manifest,
    PromptInput,
    Provenance,
    Reference,
    ResizeView,
    Simulated,
    Stage,
    StageInput,
    Tokenizer,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "green", "cat", "dog", "house"]


def write_bundle(
    root: Path,
    name: str = "tiny",
    version: str = "1",
    *,
    bias: float = 0.0,
    max_batch: int = 8,
    expected_shift: float = 0.0,
) -> Path:
    """A bundle with two dimensions, and its directory.

    ``brightness`` is the mean of the picture's 8x8 thumbnail in 0..1 plus ``bias``; ``wordiness`` is brightness times
    the number of the prompt's tokens. ``expected_shift`` makes the golden record wrong by so much.
    """
    directory = root / name / version
    directory.mkdir(parents=True)
    _save(directory / "image.onnx", _image_graph(bias))
    _save(directory / "text.onnx", _text_graph())
    _save(directory / "head.onnx", _head_graph())
    _tokenizer().save(str(directory / "tokenizer.json"))
    pictures = [np.full((20, 30, 3), value, np.uint8) for value in (0, 51, 255)]
    prompts = ["a cat", "a red house", "dog"]
    tokens = [4, 5, 3]
    bright = [float(picture.mean()) / 255 + bias for picture in pictures]
    expected = np.array([[b, b * t] for b, t in zip(bright, tokens, strict=True)]) + expected_shift
    np.savez(
        directory / "golden.npz",
        prompts=np.array(prompts),
        dimensions=np.array(["brightness", "wordiness"]),
        expected=expected,
        **{f"image_{i}": picture for i, picture in enumerate(pictures)},
    )
    stages = [
        Stage(
            name="image_encoder",
            graph="image.onnx",
            inputs={"image": ImageInput(view=ResizeView(height=8, width=8))},
            outputs=["brightness"],
            max_batch=max_batch,
        ),
        Stage(
            name="text_encoder",
            graph="text.onnx",
            inputs={"mask": PromptInput(tokenizer="words", field="mask")},
            outputs=["count"],
            max_batch=max_batch,
        ),
        Stage(
            name="head",
            graph="head.onnx",
            inputs={
                "brightness": StageInput(stage="image_encoder", output="brightness"),
                "count": StageInput(stage="text_encoder", output="count"),
            },
            outputs=["wordiness"],
            max_batch=max_batch,
        ),
    ]
    dimensions = [
        _dimension("brightness", "image_encoder", maximum=1.0 + bias),
        _dimension("wordiness", "head", maximum=16.0, needs_prompt=True),
    ]
    tokenizers = {"words": Tokenizer(file="tokenizer.json", max_length=16, pad_id=0, pad_to_multiple=4)}
    return _write_manifest(directory, name, version, stages, dimensions, tokenizers)


def write_simulated(
    root: Path,
    *,
    batch_ms: float = 5.0,
    item_ms: float = 0.1,
    max_batch: int = 32,
    name: str = "simulated",
    cache: bool = False,
) -> Path:
    """A bundle that runs on the simulated accelerator; its one dimension is the red value of the top left pixel."""
    directory = root / name / "1"
    directory.mkdir(parents=True)
    stage = Stage(
        name="device",
        runtime="simulated",
        simulated=Simulated(batch_ms=batch_ms, item_ms=item_ms),
        inputs={"image": ImageInput(view=ResizeView(height=8, width=8))},
        outputs=["red"],
        max_batch=max_batch,
        cache=cache,
    )
    return _write_manifest(directory, name, "1", [stage], [_dimension("red", "device", maximum=255.0)], {})


def _dimension(name: str, stage: str, maximum: float, *, needs_prompt: bool = False) -> Dimension:
    return Dimension(
        name=name,
        title=name.title(),
        description=f"{name} of the picture",
        stage=stage,
        output={"brightness": "brightness", "wordiness": "wordiness"}.get(name, name),
        minimum=0.0,
        maximum=maximum,
        needs_prompt=needs_prompt,
        tolerance=1e-5,
        calibration=Calibration(raw=[0.0, maximum], calibrated=[0.0, 1.0]),
        reference=Reference(population="a ramp", count=101, quantiles=[i * maximum / 100 for i in range(101)]),
    )


def _write_manifest(
    directory: Path,
    name: str,
    version: str,
    stages: list[Stage],
    dimensions: list[Dimension],
    tokenizers: dict[str, Tokenizer],
) -> Path:
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(directory.iterdir())}
    manifest = Manifest(
        name=name,
        version=version,
        family="test",
        title=name,
        description="made by the tests",
        stages=stages,
        tokenizers=tokenizers,
        dimensions=dimensions,
        licence=Licence(code="Apache-2.0", weights="Apache-2.0"),
        provenance=Provenance(created="2026-01-01", command="tests"),
        files=files,
    )
    (directory / "manifest.json").write_text(manifest.model_dump_json(indent=2))
    return directory


def edit_manifest(directory: Path, **changes: Any) -> None:
    """Overwrites top-level entries of a manifest, unchecked."""
    path = directory / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _image_graph(bias: float) -> onnx.GraphProto:
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
        helper.make_node("Div", ["mean", "full"], ["share"]),
        helper.make_node("Add", ["share", "bias"], ["brightness"]),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.array(255.0, np.float32), "full"),
        numpy_helper.from_array(np.array(bias, np.float32), "bias"),
    ]
    inputs = [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 8, 8, 3])]
    outputs = [helper.make_tensor_value_info("brightness", TensorProto.FLOAT, ["batch"])]
    return helper.make_graph(nodes, "image", inputs, outputs, constants)


def _text_graph() -> onnx.GraphProto:
    nodes = [
        helper.make_node("Cast", ["mask"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["float", "axes"], ["count"], keepdims=0),
    ]
    constants = [numpy_helper.from_array(np.array([1], np.int64), "axes")]
    inputs = [helper.make_tensor_value_info("mask", TensorProto.INT64, ["batch", "length"])]
    outputs = [helper.make_tensor_value_info("count", TensorProto.FLOAT, ["batch"])]
    return helper.make_graph(nodes, "text", inputs, outputs, constants)


def _head_graph() -> onnx.GraphProto:
    nodes = [helper.make_node("Mul", ["brightness", "count"], ["wordiness"])]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("brightness", "count")]
    return helper.make_graph(
        nodes, "head", inputs, [helper.make_tensor_value_info("wordiness", TensorProto.FLOAT, ["batch"])]
    )


def _save(path: Path, graph: onnx.GraphProto) -> None:
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _tokenizer() -> HfTokenizer:
    tokenizer = HfTokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer
