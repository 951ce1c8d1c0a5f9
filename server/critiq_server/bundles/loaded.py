"""A bundle in memory: its stages' runtimes and tokenizers, its digests, what each output needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from critiq_server.bundles.manifest import (
    ImageInput,
    Manifest,
    PromptInput,
    Stage,
    StageInput,
    TextInput,
    View,
)
from critiq_server.features.keys import Key
from critiq_server.prompts import PromptTokenizer
from critiq_server.runtime.base import Runtime
from critiq_server.runtime.lmm.stage import LmmRuntime
from critiq_server.scoring.judgement import Judgement


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

    @property
    def computes(self) -> bool:
        """Whether its outputs can come from anywhere but the store."""
        return self.lmm is None or self.lmm.extractor is not None


@dataclass(frozen=True, slots=True)
class Plan:
    """What it takes to get some stages' outputs: stages in an order that can be computed, and the views they see."""

    stages: tuple[LoadedStage, ...]
    views: frozenset[View]
    tokenizers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Golden:
    """Records of what a model gave when it was exported.

    ``images``: RGB uint8 ``[height, width, 3]`` each; ``expected``: raw values ``[records, dimensions]``; ``features``:
    those of LMM stages, by stage, a row a record.
    """

    images: Sequence[NDArray[np.uint8]]
    prompts: Sequence[str]
    dimensions: Sequence[str]
    expected: NDArray[np.float64]
    features: Mapping[str, NDArray[np.generic]]

    def first(self) -> Golden:
        """The first record alone."""
        features = {name: rows[:1].copy() for name, rows in self.features.items()}
        return Golden(self.images[:1], self.prompts[:1], self.dimensions, self.expected[:1].copy(), features)


@dataclass(eq=False)
class LoadedModel:
    """One version of one model, ready to serve."""

    manifest: Manifest
    stages: Mapping[str, LoadedStage]
    tokenizers: Mapping[str, PromptTokenizer]
    golden: Golden | None = None
    """The first golden record, to see whether the model still computes; ``None``: the bundle has none."""
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
    def vectors(self) -> Mapping[str, tuple[str, ...]]:
        """By stage that sees the picture itself, in the manifest's order: its outputs that are single float vectors."""
        return {
            name: tuple(
                output
                for output, spec in stage.runtime.outputs.items()
                if len(spec.shape) == 1 and spec.shape[0] and spec.dtype.startswith("float")
            )
            for name, stage in self.stages.items()
            if any(isinstance(source, ImageInput) for _, source in stage.inputs)
        }

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
        # A stage that only looks its outputs up never sees the picture: nothing is cut or held for it.
        sources = [source for stage in stages if stage.computes for _, source in stage.inputs]
        return Plan(
            stages,
            frozenset(source.view for source in sources if isinstance(source, ImageInput)),
            tuple(dict.fromkeys(source.tokenizer for source in sources if isinstance(source, PromptInput))),
        )
