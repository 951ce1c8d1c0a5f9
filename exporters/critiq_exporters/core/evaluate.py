"""Runs all stages of a model over pictures and prompts, whatever computes them: torch or onnxruntime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from critiq_exporters.core.lmm_features import FeatureSource, drawn_features
from critiq_exporters.core.pictures import Pixels
from critiq_exporters.core.rows import Rows, alike, as_rows, take
from critiq_server.bundles.manifest import Dimension, ImageInput, PromptInput, Stage, StageInput, Tokenizer
from critiq_server.images.views import apply_view
from critiq_server.prompts import PromptTokenizer
from critiq_server.runtime.lmm.base import FEATURE

Arrays = Mapping[str, Rows]
Run = Callable[[Stage, Arrays], Arrays]


@dataclass(frozen=True)
class Trace:
    """What went into and came out of every stage, by stage name; every array has one row a picture (``rows``).

    Of LMM stages there are only outputs.
    """

    inputs: Mapping[str, Arrays]
    outputs: Mapping[str, Arrays]
    seconds: Mapping[str, float]
    """Spent in each stage, all pictures together."""

    def raw(self, dimension: Dimension) -> NDArray[np.float64]:
        """Raw values of one dimension, ``[pictures]``."""
        values = self.outputs[dimension.stage][dimension.output]
        return values.reshape(len(values)).astype(np.float64)


def evaluate(
    stages: Sequence[Stage],
    tokenizers: Mapping[str, tuple[Tokenizer, PromptTokenizer]],
    run: Run,
    pictures: Sequence[Pixels],
    prompts: Sequence[str],
    batch: int = 1,
    features: FeatureSource = drawn_features,
) -> Trace:
    """Computes ``stages`` in their order, ``batch`` pictures of one shape at a time; ``features`` stands for LMMs.

    Prompts are padded to the longest.
    """
    inputs: dict[str, Arrays] = {}
    outputs: dict[str, Arrays] = {}
    seconds: dict[str, float] = {}
    for stage in stages:
        if stage.lmm is not None:
            outputs[stage.name] = {FEATURE: features(stage, pictures, prompts)}
            continue
        arrays: dict[str, NDArray[Any]] = {}
        for name, source in stage.inputs.items():
            if isinstance(source, ImageInput):
                arrays[name] = as_rows([apply_view(picture, source.view) for picture in pictures])
            elif isinstance(source, PromptInput):
                arrays[name] = _tokens(*tokenizers[source.tokenizer], prompts, source)
            elif isinstance(source, StageInput):
                arrays[name] = outputs[source.stage][source.output]
        inputs[stage.name] = arrays
        started = perf_counter()
        outputs[stage.name] = run_in_batches(stage, run, arrays, batch)
        seconds[stage.name] = perf_counter() - started
    return Trace(inputs, outputs, seconds)


def run_in_batches(stage: Stage, run: Run, arrays: Arrays, batch: int) -> Arrays:
    """All rows of ``arrays`` through one stage, at most ``batch`` of one shape at a time."""
    found: dict[int, Arrays] = {}
    for group in alike(arrays):
        for start in range(0, len(group), batch):
            numbers = group[start : start + batch]
            values = run(stage, {name: take(rows, numbers) for name, rows in arrays.items()})
            found |= {
                int(number): {name: values[name][place] for name in stage.outputs}
                for place, number in enumerate(numbers)
            }
    return {name: as_rows([found[number][name] for number in range(len(found))]) for name in stage.outputs}


def open_tokenizers(tokenizers: Mapping[str, Tokenizer], folder: Path) -> dict[str, tuple[Tokenizer, PromptTokenizer]]:
    """Tokenizers whose files lie in ``folder``."""
    return {name: (entry, PromptTokenizer(folder / entry.file, entry)) for name, entry in tokenizers.items()}


def torch_run(modules: Mapping[str, nn.Module]) -> Run:
    """Runs stages as torch modules."""

    def run(stage: Stage, arrays: Arrays) -> Arrays:
        with torch.inference_mode():
            values = modules[stage.name](*(torch.from_numpy(arrays[name]) for name in stage.inputs))
        values = values if isinstance(values, tuple) else (values,)
        return {name: value.numpy() for name, value in zip(stage.outputs, values, strict=True)}

    return run


def onnx_run(folder: Path, stages: Sequence[Stage], threads: int) -> Run:
    """Runs stages as the ONNX graphs that ``folder`` holds, on the CPU."""
    sessions = {
        stage.name: open_session(folder / str(stage.graph), threads) for stage in stages if stage.graph is not None
    }

    def run(stage: Stage, arrays: Arrays) -> Arrays:
        values = sessions[stage.name].run(stage.outputs, {name: arrays[name] for name in stage.inputs})
        return dict(zip(stage.outputs, values, strict=True))

    return run


def open_session(graph: Path | bytes, threads: int) -> Any:
    """An onnxruntime session of a file, or of a serialised model, on the CPU, set up as the server does."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(
        graph if isinstance(graph, bytes) else str(graph), options, providers=["CPUExecutionProvider"]
    )


def _tokens(
    entry: Tokenizer, tokenizer: PromptTokenizer, prompts: Sequence[str], source: PromptInput
) -> NDArray[np.int64]:
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    rows = [tokens.ids if source.field == "ids" else tokens.mask for tokens in encoded]
    longest = max(map(len, rows))
    padding = entry.pad_id if source.field == "ids" else 0
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=padding) for row in rows])
