"""An ONNX graph -> a TensorRT engine for the GPU at hand, with a profile that covers the batcher's limits.

Networks are strongly typed, as TensorRT 11 demands and TensorRT 10 allows: every precision is the graph's own, so an
fp16 engine comes from an fp16 bundle, whose softmax and layer-norm statistics stand in float32 in the graph itself.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from critiq_exporters.core.graphs import ExportError
from critiq_server.bundles.manifest import ImageInput, NativeView, PromptInput, Stage, Tokenizer

BATCH, LENGTH, SIDES = "batch", "length", ("rows", "columns")
"""The names that exported graphs give to their open dimensions."""


@dataclass(frozen=True)
class Range:
    """Of one open dimension: what the engine accepts, and what it is tuned for."""

    least: int
    usual: int
    most: int


def ranges(stage: Stage, stages: Mapping[str, Stage], tokenizers: Mapping[str, Tokenizer]) -> dict[str, Range]:
    """How far the open dimensions of ``stage`` reach: batches to its limit, prompts to their tokenizer's longest,
    pictures at their own resolution to the view's bounds.

    A stage that reads others' outputs may get their prompts' length, so theirs counts too.
    """
    found = {BATCH: Range(1, max(1, stage.max_batch // 2), stage.max_batch)}
    read = [tokenizers[name] for name in _tokenizers_of(stage, stages)]
    if read:
        step = max(entry.pad_to_multiple for entry in read)
        most = max(-(-entry.max_length // entry.pad_to_multiple) * entry.pad_to_multiple for entry in read)
        # A prompt of one token is as short as its padding allows.
        least = min(min(entry.pad_to_multiple, entry.max_length) for entry in read)
        found[LENGTH] = Range(least, min(most, max(least, 4 * step)), most)
    native = [
        source.view
        for source in stage.inputs.values()
        if isinstance(source, ImageInput) and isinstance(source.view, NativeView)
    ]
    for view in native:
        sides = Range(view.shorter_min, max(view.shorter_min, min(512, view.longer_max)), view.longer_max)
        found |= dict.fromkeys(SIDES, sides)
    return found


def shapes_of(graph: Path, open_dimensions: Mapping[str, Range]) -> dict[str, tuple[tuple[int, ...], ...]]:
    """Least, usual and largest shape of every input of ``graph``.

    Raises ``ExportError`` for a dimension that is open and that nobody knows the limits of.
    """
    shapes = {}
    for entry in onnx.load(str(graph), load_external_data=False).graph.input:
        sizes = []
        for dimension in entry.type.tensor_type.shape.dim:
            if dimension.HasField("dim_value"):
                sizes.append(Range(dimension.dim_value, dimension.dim_value, dimension.dim_value))
            elif dimension.dim_param in open_dimensions:
                sizes.append(open_dimensions[dimension.dim_param])
            else:
                raise ExportError(
                    f"{graph.name}: input {entry.name!r} leaves {dimension.dim_param or 'a dimension'!r} open, and an "
                    f"engine needs its limits; known are {', '.join(open_dimensions)}"
                )
        shapes[entry.name] = tuple(
            tuple(getattr(size, field) for size in sizes) for field in ("least", "usual", "most")
        )
    return shapes


def readable(graph: Path) -> onnx.ModelProto:
    """``graph`` with two things written as TensorRT wants them; what it computes stays the same to the last bit.

    Pixels become float32 at once: TensorRT moves and cuts no uint8. Weights kept as int8 become the float32 numbers
    that they stand for: TensorRT takes int8 constants for quantised activations.
    """
    model = onnx.load(str(graph))
    _cast_pixels_first(model.graph)
    _widen_weights(model.graph)
    del model.graph.value_info[:]
    return model


def _cast_pixels_first(graph: onnx.GraphProto) -> None:
    for entry in graph.input:
        if entry.type.tensor_type.elem_type != onnx.TensorProto.UINT8:
            continue
        wide = f"{entry.name}_float"
        for node in graph.node:
            for place, name in enumerate(node.input):
                if name == entry.name:
                    node.input[place] = wide
        graph.node.insert(0, onnx.helper.make_node("Cast", [entry.name], [wide], to=onnx.TensorProto.FLOAT))


def _widen_weights(graph: onnx.GraphProto) -> None:
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for weight in graph.initializer:
        # The casts that follow then change nothing. Where anything else reads it, it is quantised in earnest.
        if weight.data_type == onnx.TensorProto.INT8 and readers.get(weight.name, set()) <= {"Cast", "Gather"}:
            values = numpy_helper.to_array(weight).astype(np.float32)
            weight.CopyFrom(numpy_helper.from_array(values, weight.name))


def build_engine(
    trt: Any,
    graph: Path,
    shapes: Mapping[str, tuple[tuple[int, ...], ...]],
    *,
    timing_cache: Path | None = None,
    workspace: int = 0,
    tf32: bool = False,
) -> bytes:
    """The serialised engine of ``graph``.

    Args:
        trt: the ``tensorrt`` module, version 10 or 11.
        graph: an ONNX file; weights beside it are found.
        shapes: of every input, see :func:`shapes_of`.
        timing_cache: file of measured kernel times, read if it is there and written afterwards: a second build for the
            same GPU is then much faster and chooses the same kernels.
        workspace: bytes of GPU memory that building may use; 0: no limit of ours.
        tf32: let float32 products be computed with 10 bits of fraction, as TensorRT does unless told not to.

    Raises:
        ExportError: TensorRT does not read the graph (each of its complaints is listed), or cannot build it.
    """
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not _parse(parser, readable(graph)):
        complaints = "\n".join(f"  {parser.get_error(number).desc()}" for number in range(parser.num_errors))
        raise ExportError(f"TensorRT cannot read {graph.name}:\n{complaints}")
    config = builder.create_builder_config()
    if not tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    if workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    profile = builder.create_optimization_profile()
    for number in range(network.num_inputs):
        name = network.get_input(number).name
        profile.set_shape(name, *shapes[name])
    config.add_optimization_profile(profile)
    if timing_cache is not None:
        known = timing_cache.read_bytes() if timing_cache.exists() else b""
        config.set_timing_cache(config.create_timing_cache(known), ignore_mismatch=False)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ExportError(f"TensorRT cannot build {graph.name}; its messages above say why")
    if timing_cache is not None:
        timing_cache.write_bytes(bytes(config.get_timing_cache().serialize()))
    return bytes(engine)


def _parse(parser: Any, model: onnx.ModelProto) -> bool:
    # From a file with the weights beside it: as one message a graph must stay below 2 GiB.
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.onnx"
        onnx.save(model, str(file), save_as_external_data=True, location="weights")
        return bool(parser.parse_from_file(str(file)))


def _strongly_typed(trt: Any) -> int:
    # TensorRT 11 knows nothing else and is about to drop the flag.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _tokenizers_of(stage: Stage, stages: Mapping[str, Stage]) -> set[str]:
    found: set[str] = set()
    for source in stage.inputs.values():
        if isinstance(source, PromptInput):
            found.add(source.tokenizer)
        elif source.source == "stage":
            found |= _tokenizers_of(stages[source.stage], stages)
    return found
