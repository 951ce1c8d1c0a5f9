"""Golden records: what a model gave when it was exported, and whether it gives the same here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray

from critiq.errors import CritiqError
from critiq_server.bundles.loaded import BrokenBundle, Golden, LoadedModel, LoadedStage
from critiq_server.bundles.manifest import GOLDEN_FILE, ImageInput, PromptInput, TextInput
from critiq_server.images.views import apply_view
from critiq_server.prompts import PromptTokenizer
from critiq_server.runtime.base import Arrays
from critiq_server.runtime.lmm.base import FEATURE
from critiq_server.runtime.onnx import CPU

logger = structlog.get_logger("critiq")

FEATURES_FROM_LMM = "features_from_lmm"
"""Among the golden records: whether the features are the LMM's own, and not drawn at random."""

_OFF_CPU_FACTOR = 10.0
"""Golden records are float32 on a CPU; another provider may differ this many times the stated tolerance."""


_FEATURE_LIKENESS = 0.99
_FEATURE_SCALE = 0.05
"""How alike an LMM's features must be to those recorded at export, on any machine and in any batch: cosine and relative
length. In bfloat16 the cosine is 3e-5 off 1; another question, layer or normalisation is further away."""


def read_golden(model: LoadedModel, path: Path) -> Golden:
    """The records in ``path``; raises ``BrokenBundle`` if they do not fit together."""
    with np.load(path, allow_pickle=False) as golden:
        images = [golden[f"image_{i}"] for i in range(len(golden["prompts"]))]
        prompts = [str(prompt) for prompt in golden["prompts"]]
        dimensions = [str(name) for name in golden["dimensions"]]
        expected = golden["expected"]
        features = {name: golden[feature_entry(name)] for name in model.manifest.asks_lmms}
    if not images or expected.shape != (len(images), len(dimensions)):
        raise BrokenBundle(
            f"{GOLDEN_FILE} has {len(images)} pictures and {len(dimensions)} dimensions, but values of shape "
            f"{expected.shape}"
        )
    return Golden(images, prompts, dimensions, expected, features)


def replay_golden(model: LoadedModel, golden: Golden) -> None:
    """Computes the golden records, as one batch and the first alone; raises ``BrokenBundle`` if one disagrees."""
    images, expected = golden.images, golden.expected
    for count in dict.fromkeys((len(images), 1)):
        actual = compute_raw(model, images[:count], golden.prompts[:count], golden.dimensions, golden.features)
        for column, name in enumerate(golden.dimensions):
            tolerance = model.manifest.dimension(name).tolerance
            if any(stage.runtime.provider != CPU for stage in model.stages.values() if stage.lmm is None):
                tolerance *= _OFF_CPU_FACTOR
            error = np.abs(actual[:, column] - expected[:count, column])
            if not (error <= tolerance).all():  # NaN must not pass
                row = int(np.argmax(np.where(np.isnan(error), np.inf, error)))
                raise BrokenBundle(
                    f"golden record {row}: {name} is {actual[row, column]:.6g} here, but was "
                    f"{expected[row, column]:.6g} when exported (tolerance {tolerance:g}): "
                    "the graphs do not compute on this machine what they should"
                )


def probe(model: LoadedModel) -> None:
    """Sees whether a served model still computes its first golden record. Blocks.

    A bundle without any must give finite values for a black picture. Raises ``BrokenBundle``, or what a runtime raises.
    """
    if model.golden is not None:
        replay_golden(model, model.golden)
        return
    names = [
        entry.name for entry in model.manifest.dimensions if all(not stage.lmm for stage in _needed(model, entry.stage))
    ]
    if names and not np.isfinite(compute_raw(model, [np.zeros((64, 64, 3), np.uint8)], [""], names)).all():
        raise BrokenBundle("a black picture gives values that are not finite")


def _needed(model: LoadedModel, stage: str) -> Sequence[LoadedStage]:
    return model.plan(frozenset([stage])).stages


def feature_entry(stage: str) -> str:
    """Name, among the golden records, of an LMM stage's features: float32 ``[records, width]``."""
    return f"feature_{stage}"


def check_features(model: LoadedModel, path: Path) -> None:
    """Asks the model's LMMs about the first golden record; raises ``BrokenBundle`` if one answers otherwise.

    Where the golden features were drawn, or an LMM served elsewhere is not there now, nothing is checked.
    """
    asked = {name: stage.lmm for name, stage in model.stages.items() if stage.lmm is not None and stage.lmm.extractor}
    if not asked or not path.exists():
        return
    with np.load(path, allow_pickle=False) as golden:
        if FEATURES_FROM_LMM not in golden or not golden[FEATURES_FROM_LMM]:
            return
        image, prompt = golden["image_0"], str(golden["prompts"][0])
        expected = {name: golden[feature_entry(name)][0].astype(np.float64) for name in asked}
    for name, runtime in asked.items():
        source = model.stages[name].spec.inputs["image"]
        assert isinstance(source, ImageInput)  # noqa: S101 - the manifest's validator saw to it
        try:
            found = runtime.ask([apply_view(image, source.view)], [prompt])[0].astype(np.float64)
        except CritiqError as error:
            logger.warning("the remote LMM does not answer: its features were not checked", reason=str(error))
            return
        except Exception as error:  # torch has one of its own for everything
            raise BrokenBundle(
                f"stage {name!r}: {runtime.lmm.model!r} cannot be asked here: {type(error).__name__}: {error}"
            ) from error
        lengths = [max(float(np.linalg.norm(feature)), 1e-12) for feature in (found, expected[name])]
        likeness, scale = float(found @ expected[name]) / (lengths[0] * lengths[1]), lengths[0] / lengths[1]
        if not (likeness >= _FEATURE_LIKENESS and abs(scale - 1) <= _FEATURE_SCALE):
            raise BrokenBundle(
                f"stage {name!r}: {runtime.lmm.model!r} gives other features here than when exported (cosine "
                f"{likeness:.4f}, length times {scale:.3f}): it is another model, or it is read in another way"
            )


def compute_raw(
    model: LoadedModel,
    images: Sequence[NDArray[np.uint8]],
    prompts: Sequence[str],
    dimensions: Sequence[str],
    features: Mapping[str, NDArray[np.generic]] | None = None,
) -> NDArray[np.float64]:
    """Raw values of RGB uint8 pictures, float64 ``[pictures, dimensions]``, straight through the runtimes. Blocks.

    Pictures that all views show in the same shape form one batch; its prompts are padded to the longest of them.
    ``features`` holds those of LMM stages, by stage, a row a picture; stages that it leaves out ask their LMM.
    """
    wanted = frozenset(model.manifest.dimension(name).stage for name in dimensions)
    views = sorted(model.plan(wanted).views, key=repr)
    batches: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for row, image in enumerate(images):
        batches.setdefault(tuple(apply_view(image, view).shape for view in views), []).append(row)
    found = np.empty((len(images), len(dimensions)))
    for rows in batches.values():
        given = {name: values[rows] for name, values in (features or {}).items()}
        found[rows] = _compute_batch(
            model, [images[row] for row in rows], [prompts[row] for row in rows], dimensions, given
        )
    return found


def _compute_batch(
    model: LoadedModel,
    images: Sequence[NDArray[np.uint8]],
    prompts: Sequence[str],
    dimensions: Sequence[str],
    features: Mapping[str, NDArray[np.generic]],
) -> NDArray[np.float64]:
    values: dict[tuple[str, str], NDArray[np.generic]] = {(name, FEATURE): rows for name, rows in features.items()}
    wanted = frozenset(model.manifest.dimension(name).stage for name in dimensions)
    for stage in model.plan(wanted).stages:
        if stage.spec.name in features:
            continue
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, source in stage.inputs:
            if isinstance(source, ImageInput):
                arrays[name] = np.stack([apply_view(image, source.view) for image in images])
            elif isinstance(source, PromptInput):
                tokenizer = model.tokenizers[source.tokenizer]
                arrays[name] = _tokens(tokenizer, prompts, source, model.manifest.tokenizers[source.tokenizer].pad_id)
            elif isinstance(source, TextInput):
                arrays[name] = np.array(prompts)
            else:
                arrays[name] = values[source.stage, source.output]
        for output, value in _run(stage, arrays, len(images)).items():
            values[stage.spec.name, output] = value
    columns = []
    for name in dimensions:
        dimension = model.manifest.dimension(name)
        columns.append(values[dimension.stage, dimension.output].reshape(len(images)).astype(np.float64))
    return np.stack(columns, axis=1)


def _run(stage: LoadedStage, arrays: Arrays, count: int) -> Arrays:
    """All rows, no more at a time than the stage takes: an engine is built for that many."""
    parts = [
        stage.runtime.run(
            {name: value[start : start + stage.spec.max_batch] for name, value in arrays.items()}, keep_memory=False
        )
        for start in range(0, count, stage.spec.max_batch)
    ]
    return {name: np.concatenate([part[name] for part in parts]) for name in stage.spec.outputs}


def _tokens(tokenizer: PromptTokenizer, prompts: Sequence[str], source: PromptInput, pad_id: int) -> NDArray[np.int64]:
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    rows = [tokens.ids if source.field == "ids" else tokens.mask for tokens in encoded]
    longest = max(len(row) for row in rows)
    padding = pad_id if source.field == "ids" else 0
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=padding) for row in rows])
