"""A bundle in memory: its stages' runtimes and tokenizers, its digests, what each output needs."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import structlog
from numpy.typing import NDArray
from pydantic import ValidationError

from critiq.errors import CritiqError
from critiq_server.bundles.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    ImageInput,
    Manifest,
    PromptInput,
    Stage,
    StageInput,
    TextInput,
    Tokenizer,
    View,
)
from critiq_server.features.keys import Key, stage_digest
from critiq_server.images.views import apply_view
from critiq_server.prompts import PromptTokenizer
from critiq_server.runtime.base import Arrays, Runtime
from critiq_server.runtime.lmm.base import FEATURE, lmm_digest
from critiq_server.runtime.lmm.pool import Lmms
from critiq_server.runtime.lmm.settings import LmmSettings
from critiq_server.runtime.lmm.stage import LmmRuntime
from critiq_server.runtime.onnx import CPU, OnnxRuntime, ProviderUnavailable, RuntimeSettings
from critiq_server.runtime.simulated import SimulatedAccelerator
from critiq_server.runtime.tensorrt_engine import EngineRuntime, open_engine
from critiq_server.scoring.judgement import Judgement

logger = structlog.get_logger("critiq")

_OFF_CPU_FACTOR = 10.0
"""Golden records are float32 on a CPU; another provider may differ this many times the stated tolerance."""


_FEATURE_LIKENESS = 0.99
_FEATURE_SCALE = 0.05
"""How alike an LMM's features must be to those recorded at export, on any machine and in any batch: cosine and relative
length. In bfloat16 the cosine is 3e-5 off 1; another question, layer or normalisation is further away."""


class BrokenBundle(Exception):
    """A bundle that must not be served; the message says which file or golden record disagrees."""


@dataclass(frozen=True, slots=True)
class LoadedStage:
    """A stage that can run."""

    spec: Stage
    digest: Key
    runtime: Runtime
    inputs: tuple[tuple[str, ImageInput | PromptInput | TextInput | StageInput], ...]
    """Ordered by name: the order in which keys are hashed."""

    @property
    def lmm(self) -> LmmRuntime | None:
        """The runtime, if it is one of an LMM."""
        return self.runtime if isinstance(self.runtime, LmmRuntime) else None


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes to get some stages' outputs: stages in an order that can be computed, and the views they see."""

    stages: tuple[LoadedStage, ...]
    views: frozenset[View]
    tokenizers: tuple[str, ...]


@dataclass(eq=False)
class LoadedModel:
    """One version of one model, ready to serve."""

    manifest: Manifest
    stages: Mapping[str, LoadedStage]
    tokenizers: Mapping[str, PromptTokenizer]
    _plans: dict[frozenset[str], Plan] = field(default_factory=dict)

    @cached_property
    def judgements(self) -> Mapping[str, Judgement]:
        """By dimension, in the manifest's order."""
        manifest = self.manifest
        return {entry.name: Judgement(entry, manifest.name, manifest.version) for entry in manifest.dimensions}

    @cached_property
    def asks_lmms(self) -> bool:
        """Whether any stage is an LMM."""
        return bool(self.manifest.asks_lmms)

    @cached_property
    def views(self) -> frozenset[View]:
        """Every view of every stage."""
        return self.plan(frozenset(self.stages)).views

    def close(self) -> None:
        """Lets go of the LMMs that the model's stages ask."""
        for stage in self.stages.values():
            if stage.lmm is not None and stage.lmm.extractor is not None:
                stage.lmm.extractor.close()

    def plan(self, outputs: frozenset[str]) -> Plan:
        """What it takes to compute the stages called ``outputs``."""
        plan = self._plans.get(outputs)
        if plan is None:
            plan = self._plans[outputs] = self._make_plan(outputs)
        return plan

    def _make_plan(self, outputs: frozenset[str]) -> Plan:
        needed: set[str] = set()
        pending = list(outputs)
        while pending:
            name = pending.pop()
            if name not in needed:
                needed.add(name)
                pending += [source.stage for _, source in self.stages[name].inputs if isinstance(source, StageInput)]
        stages = tuple(stage for name, stage in self.stages.items() if name in needed)
        sources = [source for stage in stages for _, source in stage.inputs]
        return Plan(
            stages,
            frozenset(source.view for source in sources if isinstance(source, ImageInput)),
            tuple(dict.fromkeys(source.tokenizer for source in sources if isinstance(source, PromptInput))),
        )


_STORED_ONLY = Lmms(LmmSettings(on_miss="stored"))


def load_model(directory: Path, settings: RuntimeSettings, lmms: Lmms = _STORED_ONLY) -> LoadedModel:
    """Reads, checks and warms up the bundle in ``directory``. Blocks.

    ``lmms`` opens the LMMs that its stages ask; left out, the model computes no features. The golden records carry
    their features with them. Close the model when done with it, if its LMMs are to be let go.

    Raises:
        BrokenBundle: the manifest is invalid, a file is missing or altered, a graph does not fit the manifest, or the
            golden records come out differently.
        ProviderUnavailable: the settings ask for a provider, or an LMM, that does not work here.
    """
    manifest = read_manifest(directory)
    verify_files(directory, manifest)
    tokenizers = {name: _load_tokenizer(directory, entry) for name, entry in manifest.tokenizers.items()}
    stages = {stage.name: _load_stage(directory, manifest, stage, settings) for stage in manifest.stages}
    model = LoadedModel(manifest, stages, tokenizers)
    _trim_memory()
    _check_golden(model, directory)
    _trim_memory()
    return _with_lmms(model, lmms, directory / GOLDEN_FILE) if manifest.asks_lmms else model


def _with_lmms(model: LoadedModel, lmms: Lmms, golden: Path) -> LoadedModel:
    """``model`` with its LMMs opened. Last of all: an LMM takes long to load, and the rest may be broken."""
    stages: dict[str, LoadedStage] = dict(model.stages)
    whole = LoadedModel(model.manifest, stages, model.tokenizers)
    try:
        for name, stage in model.stages.items():
            if stage.lmm is not None:
                on_miss = lmms.policy(stage.spec.on_miss)
                extractor = lmms.open(stage.lmm.lmm.asked(), on_miss)
                stages[name] = replace(stage, runtime=LmmRuntime(stage.lmm.lmm, on_miss, extractor))
        check_features(whole, golden)
    except BaseException:
        whole.close()
        raise
    return whole


def _check_golden(model: LoadedModel, directory: Path) -> None:
    if (directory / GOLDEN_FILE).exists():
        try:
            replay_golden(model, directory / GOLDEN_FILE)
        except BrokenBundle:
            raise
        except Exception as error:  # a graph or a record can be wrong in any way; none of them may be served
            raise BrokenBundle(f"{GOLDEN_FILE} cannot be replayed: {type(error).__name__}: {error}") from error
    else:
        logger.warning("bundle has no golden records: what it computes was not checked", model=model.manifest.name)


def _trim_memory() -> None:
    """Gives freed memory back to the system: opening graphs leaves as much of it behind as the weights take."""
    with contextlib.suppress(OSError, AttributeError):  # only the GNU C library has it
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def read_manifest(directory: Path) -> Manifest:
    """The manifest in ``directory``; raises ``BrokenBundle`` if there is no valid one."""
    path = directory / MANIFEST_FILE
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BrokenBundle(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, item['loc'])) or 'manifest'}: {item['msg']}" for item in error.errors()
        )
        raise BrokenBundle(f"{path} is not a valid manifest: {problems}") from error


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Raises ``BrokenBundle`` if a file of the bundle is missing or not the one that the manifest names."""
    for name, expected in manifest.files.items():
        try:
            with (directory / name).open("rb") as file:
                actual = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BrokenBundle(f"{name} cannot be read: {error.strerror}") from error
        if actual != expected:
            raise BrokenBundle(
                f"{name} has SHA-256 {actual[:12]}…, the manifest says {expected[:12]}…: it was altered or cut short"
            )


def _load_tokenizer(directory: Path, rules: Tokenizer) -> PromptTokenizer:
    try:
        return PromptTokenizer(directory / rules.file, rules)
    except Exception as error:  # the library raises bare ones
        raise BrokenBundle(f"{rules.file}: {error}") from error


def _load_stage(directory: Path, manifest: Manifest, stage: Stage, settings: RuntimeSettings) -> LoadedStage:
    runtime: Runtime
    if stage.lmm is not None:
        runtime = LmmRuntime(stage.lmm, "stored", None)
    elif stage.simulated is not None:
        runtime = SimulatedAccelerator(stage.simulated, stage.outputs)
    else:
        assert stage.graph is not None  # noqa: S101 - the manifest's validator saw to it
        try:
            runtime = _open_graph(directory, stage, settings)
        except ProviderUnavailable:
            raise
        except Exception as error:  # onnxruntime has an exception of its own for everything
            raise BrokenBundle(f"stage {stage.name!r}: {stage.graph}: {error}") from error
        if runtime.input_names != stage.inputs.keys():
            raise BrokenBundle(
                f"stage {stage.name!r}: {stage.graph} takes {sorted(runtime.input_names)}, "
                f"the manifest gives {sorted(stage.inputs)}"
            )
    inputs = tuple(sorted(stage.inputs.items()))
    return LoadedStage(stage, _digest(manifest, stage), runtime, inputs)


def _open_graph(directory: Path, stage: Stage, settings: RuntimeSettings) -> OnnxRuntime | EngineRuntime:
    if settings.provider == "engine" or (settings.provider == "auto" and stage.engines):
        try:
            return open_engine(directory, stage.engines, stage.outputs, settings.device)
        except ProviderUnavailable as error:
            if settings.provider == "engine":
                raise
            logger.info("no engine for this machine, trying onnxruntime", stage=stage.name, reason=str(error))
    return OnnxRuntime(directory / str(stage.graph), settings, stage.outputs)


def _digest(manifest: Manifest, stage: Stage) -> Key:
    image = stage.inputs.get("image")
    if stage.lmm is not None and isinstance(image, ImageInput):
        return lmm_digest(stage.lmm, image.view)
    inputs = {}
    for name, source in stage.inputs.items():
        described = source.model_dump(mode="json")
        if isinstance(source, PromptInput):
            tokenizer = manifest.tokenizers[source.tokenizer]
            described["tokenizer"] = {**tokenizer.model_dump(mode="json"), "file": manifest.files[tokenizer.file]}
        if isinstance(source, StageInput):
            del described["stage"]  # The key of that stage's output is hashed beside this digest.
        inputs[name] = described
    return stage_digest(
        {
            "runtime": stage.runtime,
            "graph": manifest.files[stage.graph] if stage.graph is not None else None,
            "inputs": inputs,
            "outputs": stage.outputs,
        }
    )


def replay_golden(model: LoadedModel, path: Path) -> None:
    """Computes the golden records, as one batch and the first alone; raises ``BrokenBundle`` if one disagrees."""
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
    for count in dict.fromkeys((len(images), 1)):
        actual = compute_raw(model, images[:count], prompts[:count], dimensions, features)
        for column, name in enumerate(dimensions):
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


def feature_entry(stage: str) -> str:
    """Name, among the golden records, of an LMM stage's features: float32 ``[records, width]``."""
    return f"feature_{stage}"


FEATURES_FROM_LMM = "features_from_lmm"
"""Among the golden records: whether the features are the LMM's own, and not drawn at random."""


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
        lengths = [max(float(np.linalg.norm(feature)), 1e-12) for feature in (found, expected[name])]
        likeness, scale = float(found @ expected[name]) / (lengths[0] * lengths[1]), lengths[0] / lengths[1]
        if not (likeness >= _FEATURE_LIKENESS and abs(scale - 1) <= _FEATURE_SCALE):
            raise BrokenBundle(
                f"stage {name!r}: {runtime.lmm.model!r} gives other features here than when exported (cosine "
                f"{likeness:.4f}, length times {scale:.3f}): it is another model, or it is read in another way"
            )


def compute_raw(
    model: LoadedModel,
    images: list[NDArray[np.uint8]],
    prompts: list[str],
    dimensions: list[str],
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
    images: list[NDArray[np.uint8]],
    prompts: list[str],
    dimensions: list[str],
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


def _tokens(tokenizer: PromptTokenizer, prompts: list[str], source: PromptInput, pad_id: int) -> NDArray[np.int64]:
    encoded = [tokenizer.encode(prompt) for prompt in prompts]
    rows = [tokens.ids if source.field == "ids" else tokens.mask for tokens in encoded]
    longest = max(len(row) for row in rows)
    padding = pad_id if source.field == "ids" else 0
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=padding) for row in rows])
