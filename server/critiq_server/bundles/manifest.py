"""The manifest of a bundle: what one version of one model is made of.

A bundle is a directory with a ``manifest.json`` and the files that it names. Exporters write it, the server reads it,
both through the types below. Everything a score depends on is in the manifest or in a file whose SHA-256 it carries, so
that the digest of a stage says exactly what the stage computes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from critiq_server.bundles.lmm import Lmm, OnMiss
from critiq_server.bundles.views import CropsView, Filter, FiveCropsView, NativeView, ResizeView, View

__all__ = [
    "GOLDEN_FILE",
    "MANIFEST_FILE",
    "SCHEMA_VERSION",
    "Calibration",
    "CropsView",
    "Digest",
    "Dimension",
    "Engine",
    "Fallback",
    "Filter",
    "FiveCropsView",
    "ImageInput",
    "Input",
    "Licence",
    "Manifest",
    "Name",
    "NativeView",
    "PromptInput",
    "Provenance",
    "Reference",
    "ResizeView",
    "Simulated",
    "Stage",
    "StageInput",
    "TextInput",
    "Tokenizer",
    "View",
]

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"
GOLDEN_FILE = "golden.npz"

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ImageInput(_Strict):
    """A stage input that is the picture, seen through a view."""

    source: Literal["image"] = "image"
    view: View


class PromptInput(_Strict):
    """A stage input that is the tokenised prompt: int64 ``[length]``, token ids or the mask of real tokens."""

    source: Literal["prompt"] = "prompt"
    tokenizer: Name
    field: Literal["ids", "mask"] = "ids"


class TextInput(_Strict):
    """A stage input that is the normalised prompt itself, as text. Only LMM stages read it."""

    source: Literal["text"] = "text"


class StageInput(_Strict):
    """A stage input that is another stage's output."""

    source: Literal["stage"] = "stage"
    stage: Name
    output: str


Input = Annotated[ImageInput | PromptInput | TextInput | StageInput, Field(discriminator="source")]


class Tokenizer(_Strict):
    """A ``tokenizers`` JSON file and how its output is cut and padded.

    A prompt longer than ``max_length`` tokens is cut so that the closing special token stays, and the answer says so.
    Shorter ones are padded to a multiple of ``pad_to_multiple`` (``max_length`` itself for a fixed length).
    """

    file: str
    max_length: int = Field(gt=0, le=8192)
    pad_id: int = Field(ge=0, default=0)
    pad_to_multiple: int = Field(gt=0, default=8)


class Simulated(_Strict):
    """Cost model of the simulated accelerator (tests and benchmarks of the engine alone)."""

    batch_ms: float = Field(ge=0)
    item_ms: float = Field(ge=0)


class Engine(_Strict):
    """A TensorRT engine of a stage's graph. It runs where it was built: on that kind of GPU, with that TensorRT."""

    file: str
    tensorrt: str
    """Version that built it, for instance ``10.13.3``."""
    compute_capability: str = Field(pattern=r"^\d+\.\d+$")
    """Of the GPU, for instance ``9.0``."""


class Stage(_Strict):
    """One graph with named inputs and outputs; every array has the batch as its first axis."""

    name: Name
    runtime: Literal["onnx", "simulated", "lmm"] = "onnx"
    graph: str | None = None
    """File of the ONNX graph, relative to the bundle."""
    engines: list[Engine] = Field(default_factory=list)
    """The same graph, built for particular GPUs. They are no part of the stage's digest: a feature stays the same."""
    simulated: Simulated | None = None
    lmm: Lmm | None = None
    """The LMM and its question. The inputs are ``image`` and, if the question quotes it, ``prompt`` (a
    :class:`TextInput`); the output is ``feature``, float32 ``[width]``."""
    on_miss: OnMiss = "compute"
    """Of an LMM stage: what to do when the feature is not in the store. No part of its digest; settings override it."""
    inputs: dict[str, Input] = Field(min_length=1)
    outputs: list[str] = Field(min_length=1)
    max_batch: int = Field(gt=0, le=4096, default=16)
    cache: bool = True
    """Whether outputs are kept in the feature store. Off for stages that cost less than a look-up."""
    lasting: bool | None = None
    """Whether they also go to the stores on disk and in the network, where there are any. Left out: those of LMM stages
    do. No part of the digest."""
    no_value_for: str = Field(default="", max_length=200)
    """Pictures that the graph has no value for, in words ("pictures of one colour"): it gives NaN for them, and callers
    are told so. Left empty, values that are not finite are a fault of the model. No part of the digest."""

    @property
    def outlasts(self) -> bool:
        """Whether outputs go to the stores that outlast the process."""
        return self.cache and (self.runtime == "lmm" if self.lasting is None else self.lasting)

    @model_validator(mode="after")
    def _runtime_has_what_it_needs(self) -> Self:
        if self.runtime == "onnx" and self.graph is None:
            raise ValueError(f"stage {self.name!r} runs ONNX but names no graph file")
        if self.runtime == "simulated" and self.simulated is None:
            raise ValueError(f"stage {self.name!r} is simulated but gives no costs")
        if (self.runtime == "lmm") != (self.lmm is not None):
            raise ValueError(f"stage {self.name!r}: the runtime lmm and the description of one go together")
        if self.lmm is not None:
            self._check_lmm(self.lmm)
        elif any(isinstance(source, TextInput) for source in self.inputs.values()):
            raise ValueError(f"stage {self.name!r} reads text, which only LMM stages can")
        return self

    def _check_lmm(self, lmm: Lmm) -> None:
        kinds: dict[str, type[_Strict]] = {"image": ImageInput} | ({"prompt": TextInput} if lmm.reads_prompt else {})
        if {name: type(source) for name, source in self.inputs.items()} != kinds:
            wanted = "the image and the prompt's text" if lmm.reads_prompt else "the image alone"
            raise ValueError(f"stage {self.name!r}: an LMM asked {lmm.instruction!r} reads {wanted}")
        if self.outputs != ["feature"] or self.graph is not None or not self.cache:
            raise ValueError(f"stage {self.name!r}: an LMM gives the output 'feature', has no graph and is cached")


class Calibration(_Strict):
    """A monotone piecewise-linear map from raw values to 0..1 (0 worst, 1 best); constant outside its ends."""

    raw: list[float] = Field(min_length=2)
    calibrated: list[float] = Field(min_length=2)
    method: str = "piecewise-linear"
    """How the points were found, in words."""

    @model_validator(mode="after")
    def _is_monotone(self) -> Self:
        if len(self.raw) != len(self.calibrated):
            raise ValueError("calibration needs as many calibrated as raw points")
        if any(a >= b for a, b in zip(self.raw, self.raw[1:], strict=False)):
            raise ValueError("calibration raw points must increase strictly")
        steps = [b - a for a, b in zip(self.calibrated, self.calibrated[1:], strict=False)]
        if any(s < 0 for s in steps) and any(s > 0 for s in steps):
            raise ValueError("calibration must be monotone")
        if min(self.calibrated) < 0 or max(self.calibrated) > 1:
            raise ValueError("calibrated points must lie in 0..1")
        return self


class Reference(_Strict):
    """Raw scores of a named population, as evenly spaced quantiles from the 0th to the 100th percentile."""

    population: str
    count: int = Field(gt=0)
    quantiles: list[float] = Field(min_length=2)

    @model_validator(mode="after")
    def _is_sorted(self) -> Self:
        if any(a > b for a, b in zip(self.quantiles, self.quantiles[1:], strict=False)):
            raise ValueError("reference quantiles must not decrease")
        return self


class Fallback(_Strict):
    """A head that does without the features of an LMM: read when they are missing, and its answer flagged as degraded.

    Its raw values need not be on the dimension's scale: it has a calibration of its own, and no percentile.
    """

    stage: Name
    output: str
    calibration: Calibration | None = None


class Dimension(_Strict):
    """One thing that the model judges, read from one scalar output (``[batch]`` or ``[batch, 1]``) of one stage."""

    name: Name
    title: str
    description: str
    stage: Name
    output: str
    minimum: float | None = None
    """Smallest and largest raw value that can occur; null where unbounded."""
    maximum: float | None = None
    direction: Literal["higher_is_better", "lower_is_better"] = "higher_is_better"
    scope: Literal["absolute", "within_prompt"] = "absolute"
    """``within_prompt``: raw values compare only pictures made from the same prompt."""
    needs_prompt: bool = False
    tolerance: float = Field(gt=0, default=1e-4)
    """How far a raw value may move with the batch it rides in, the machine and the provider (float32 on CPU)."""
    calibration: Calibration | None = None
    reference: Reference | None = None
    fallback: Fallback | None = None


class Licence(_Strict):
    code: str
    weights: str
    data: str = ""


class Provenance(_Strict):
    created: str
    """ISO 8601 date."""
    command: str
    """The command that made the bundle."""
    source: str = ""
    """Where weights and data came from."""
    notes: str = ""


class Manifest(_Strict):
    """One version of one model. See the field types for shapes and units."""

    schema_version: Literal[1] = 1
    name: Name
    version: Name
    family: str
    title: str
    description: str
    stages: list[Stage] = Field(min_length=1)
    tokenizers: dict[Name, Tokenizer] = Field(default_factory=dict)
    dimensions: list[Dimension] = Field(min_length=1)
    licence: Licence
    provenance: Provenance
    files: dict[str, Digest] = Field(default_factory=dict)
    """SHA-256 of every other file of the bundle, by relative path."""

    def stage(self, name: str) -> Stage:
        """The stage called ``name``; raises ``KeyError`` where there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise KeyError(name)

    def dimension(self, name: str) -> Dimension:
        """The dimension called ``name``; raises ``KeyError`` where there is none."""
        for dimension in self.dimensions:
            if dimension.name == name:
                return dimension
        raise KeyError(name)

    @model_validator(mode="after")
    def _graph_is_sound(self) -> Self:
        """Names are unique, references resolve, and stages stand after the stages they read (so there is no cycle)."""
        seen: dict[str, Stage] = {}
        for stage in self.stages:
            if stage.name in seen:
                raise ValueError(f"two stages are called {stage.name!r}")
            for tensor, source in stage.inputs.items():
                where = f"input {tensor!r} of stage {stage.name!r}"
                if isinstance(source, PromptInput) and source.tokenizer not in self.tokenizers:
                    raise ValueError(f"{where} names the unknown tokenizer {source.tokenizer!r}")
                if isinstance(source, StageInput):
                    if source.stage not in seen:
                        raise ValueError(f"{where} reads stage {source.stage!r}, which does not stand before it")
                    if source.output not in seen[source.stage].outputs:
                        raise ValueError(f"{where}: stage {source.stage!r} has no output {source.output!r}")
            seen[stage.name] = stage
        names = [dimension.name for dimension in self.dimensions]
        if len(set(names)) != len(names):
            raise ValueError("two dimensions have the same name")
        for dimension in self.dimensions:
            where = f"dimension {dimension.name!r}"
            if dimension.stage not in seen or dimension.output not in seen[dimension.stage].outputs:
                raise ValueError(f"{where} reads {dimension.stage}.{dimension.output}, which does not exist")
            if dimension.needs_prompt != ("prompt" in self.roots(dimension.stage)):
                raise ValueError(f"{where}: needs_prompt must say whether its stages read the prompt")
            if dimension.fallback is not None:
                self._check_fallback(dimension.fallback, where, dimension.needs_prompt)
        for path in self._named_files():
            if Path(path).is_absolute() or ".." in Path(path).parts:
                raise ValueError(f"{path!r} leaves the bundle")
            if path not in self.files:
                raise ValueError(f"the manifest names {path!r} but carries no digest of it")
        return self

    def _check_fallback(self, fallback: Fallback, where: str, has_prompt: bool) -> None:
        if fallback.stage not in {stage.name for stage in self.stages} or (
            fallback.output not in self.stage(fallback.stage).outputs
        ):
            raise ValueError(f"the fallback of {where} reads {fallback.stage}.{fallback.output}, which does not exist")
        if self.lmm_stages(fallback.stage):
            raise ValueError(f"the fallback of {where} depends on an LMM itself")
        if "prompt" in self.roots(fallback.stage) and not has_prompt:
            raise ValueError(f"the fallback of {where} reads the prompt, which the dimension does not")

    def _named_files(self) -> list[str]:
        graphs = [stage.graph for stage in self.stages if stage.graph is not None]
        engines = [engine.file for stage in self.stages for engine in stage.engines]
        return [*graphs, *engines, *(tokenizer.file for tokenizer in self.tokenizers.values()), *self.files]

    def roots(self, stage_name: str) -> set[str]:
        """What ``stage_name`` depends on in the end: a subset of ``{"image", "prompt"}``."""
        found: set[str] = set()
        for source in self.stage(stage_name).inputs.values():
            if isinstance(source, StageInput):
                found |= self.roots(source.stage)
            else:
                found.add("image" if isinstance(source, ImageInput) else "prompt")
        return found

    @property
    def asks_lmms(self) -> list[str]:
        """Names of all LMM stages."""
        return [stage.name for stage in self.stages if stage.lmm is not None]

    def lmm_stages(self, stage_name: str) -> list[str]:
        """The LMM stages that ``stage_name`` depends on, itself included, in the manifest's order."""
        needed = {stage_name}
        for stage in reversed(self.stages):  # a stage stands behind what it reads
            if stage.name in needed:
                needed |= {source.stage for source in stage.inputs.values() if isinstance(source, StageInput)}
        return [stage.name for stage in self.stages if stage.name in needed and stage.lmm is not None]
