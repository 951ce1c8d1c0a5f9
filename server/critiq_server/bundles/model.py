"""Loads a bundle: reads its manifest, checks its files, opens its graphs and LMMs, replays its golden records."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
from dataclasses import replace
from pathlib import Path

import structlog
from pydantic import ValidationError

from critiq_server.bundles.golden import check_features, compute_raw, read_golden, replay_golden
from critiq_server.bundles.loaded import BrokenBundle, Golden, LoadedModel, LoadedStage
from critiq_server.bundles.manifest import (
    GOLDEN_FILE,
    MANIFEST_FILE,
    ImageInput,
    Manifest,
    PromptInput,
    Stage,
    StageInput,
    Tokenizer,
)
from critiq_server.features.keys import Key, stage_digest
from critiq_server.prompts import PromptTokenizer
from critiq_server.runtime.base import Runtime
from critiq_server.runtime.lmm.base import lmm_digest
from critiq_server.runtime.lmm.pool import Lmms
from critiq_server.runtime.lmm.settings import LmmSettings
from critiq_server.runtime.lmm.stage import LmmRuntime
from critiq_server.runtime.onnx import OnnxRuntime, ProviderUnavailable, RuntimeSettings
from critiq_server.runtime.simulated import SimulatedAccelerator
from critiq_server.runtime.tensorrt_engine import EngineRuntime, open_engine

logger = structlog.get_logger("critiq")

__all__ = [
    "BrokenBundle",
    "LoadedModel",
    "LoadedStage",
    "compute_raw",
    "load_model",
    "read_manifest",
    "verify_files",
]

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
    model.golden = _checked_golden(model, directory)
    _trim_memory()
    return _with_lmms(model, lmms, directory / GOLDEN_FILE) if manifest.asks_lmms else model


def _with_lmms(model: LoadedModel, lmms: Lmms, golden: Path) -> LoadedModel:
    """``model`` with its LMMs opened. Last of all: an LMM takes long to load, and the rest may be broken."""
    stages: dict[str, LoadedStage] = dict(model.stages)
    whole = LoadedModel(model.manifest, stages, model.tokenizers, model.golden)
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


def _checked_golden(model: LoadedModel, directory: Path) -> Golden | None:
    """The first of the golden records, all of which the model computes; ``None`` if the bundle has none."""
    if not (directory / GOLDEN_FILE).exists():
        logger.warning("bundle has no golden records: what it computes was not checked", model=model.manifest.name)
        return None
    try:
        golden = read_golden(model, directory / GOLDEN_FILE)
        replay_golden(model, golden)
    except BrokenBundle:
        raise
    except Exception as error:  # a graph or a record can be wrong in any way; none of them may be served
        raise BrokenBundle(f"{GOLDEN_FILE} cannot be replayed: {type(error).__name__}: {error}") from error
    return golden.first()


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
