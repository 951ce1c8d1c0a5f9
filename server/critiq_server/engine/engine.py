"""Evaluates a model's graph for one picture and prompt.

The keys of all outputs follow from the keys of the picture and the prompt alone, so the engine starts at the outputs:
it looks each up in the store, joins a computation under way, or computes it from its inputs, which it gets the same
way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from critiq.errors import CritiqError, FeaturesMissing
from critiq.types import PromptReport
from critiq_server.bundles.manifest import ImageInput, PromptInput, TextInput
from critiq_server.bundles.model import LoadedModel, LoadedStage
from critiq_server.engine.batcher import Batcher
from critiq_server.engine.demand import Demand
from critiq_server.engine.flights import Flight, Flights
from critiq_server.engine.health import ModelHealth
from critiq_server.engine.lmm import Lane
from critiq_server.engine.pictures import Picture
from critiq_server.features.keys import Key, output_key, prompt_key
from critiq_server.features.memory import MemoryStore
from critiq_server.features.records import Features
from critiq_server.features.tiers import LowerTiers
from critiq_server.prompts import Tokens
from critiq_server.runtime.lmm.base import LmmUnreachable
from critiq_server.runtime.onnx import CPU
from critiq_server.telemetry import traces

Inputs = Mapping[str, NDArray[Any]]
StageBatcher = Batcher[Inputs, Features]


@dataclass(eq=False)
class ServedModel:
    """A loaded model with a batcher in front of each stage, and the stages whose outputs outlast the process.

    A stage that is served from stored features only has none.
    """

    model: LoadedModel
    batchers: Mapping[str, StageBatcher | Lane]
    lasting: frozenset[str] = frozenset()
    health: ModelHealth | None = None

    @property
    def suspended(self) -> str:
        """Why the model computes nothing at present; empty if it does."""
        return self.health.reason if self.health is not None else ""

    async def close(self) -> None:
        if self.health is not None:
            self.health.close()
        await asyncio.gather(*(batcher.close() for batcher in self.batchers.values()))
        await asyncio.to_thread(self.model.close)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Outputs by stage, the stages whose outputs came from the store, and what was done to the prompt.

    ``unanswered`` says why the outputs are missing that an LMM did not give its features for.
    """

    values: Mapping[str, Features]
    from_store: frozenset[str]
    prompt: PromptReport | None
    unanswered: Mapping[str, CritiqError]


class _NotStored(Exception):
    """Features of LMM stages that are served from the store only, and are not in it."""

    def __init__(self, stages: frozenset[str]) -> None:
        super().__init__(*sorted(stages))
        self.stages = stages


class Engine:
    """Store and flights, shared by all models.

    Args:
        store: in memory, for all stages that are cached at all.
        on_lookup: told (stage name, found?) of every look-up in memory.
        below: disk and network, for the stages whose outputs outlast the process; ``None``: there are none.
        on_output: told (model, stage name, outputs) of what was computed by the stages that are cached.
    """

    def __init__(
        self,
        store: MemoryStore,
        on_lookup: Callable[[str, bool], None] = lambda stage, hit: None,
        below: LowerTiers | None = None,
        on_output: Callable[[ServedModel, str, Features], None] = lambda served, stage, features: None,
    ) -> None:
        self.store = store
        self.on_output = on_output
        self.below = below
        self._on_lookup = on_lookup
        self._flights: Flights[Features] = Flights()

    async def evaluate(
        self, served: ServedModel, outputs: frozenset[str], picture: Picture, prompt: str, demand: Demand
    ) -> Evaluation:
        """Computes or finds the outputs of the stages called ``outputs``. ``prompt`` is normalised.

        Raises what decoding, queueing or computing raises; see ``critiq.errors``.
        """
        plan = served.model.plan(outputs)
        tokens = {name: served.model.tokenizers[name].encode(prompt) for name in plan.tokenizers}
        picture_key = await picture.identify(plan.views, demand)
        keys = _output_keys(plan.stages, picture_key, prompt_key(prompt))
        request = _Request(self, served, picture, prompt, tokens, keys, set())
        found = {name: self._look_up(served, name, keys[name]) for name in outputs}
        missing = [name for name, features in found.items() if features is None]
        values = {name: features for name, features in found.items() if features is not None}
        from_memory = frozenset(values)
        unanswered: dict[str, CritiqError] = {}
        if served.model.asks_lmms:
            outcomes = await asyncio.gather(*(request.value(name, demand) for name in missing), return_exceptions=True)
            for name, outcome in zip(missing, outcomes, strict=True):
                if isinstance(outcome, _NotStored):
                    unanswered[name] = _features_missing(served, outcome.stages)
                elif isinstance(outcome, LmmUnreachable):
                    unanswered[name] = outcome
                elif isinstance(outcome, BaseException):
                    raise outcome
                else:
                    values[name] = outcome
        elif len(missing) == 1:
            values[missing[0]] = await request.value(missing[0], demand)
        else:
            computed = await asyncio.gather(*(request.value(name, demand) for name in missing))
            values.update(zip(missing, computed, strict=True))
        report = next(iter(tokens.values())).report if tokens else None
        return Evaluation(values, from_memory | (request.found_below & outputs), report, unanswered)

    def _look_up(self, served: ServedModel, name: str, key: Key) -> Features | None:
        if not served.model.stages[name].spec.cache:
            return None
        features = self.store.get(key)
        self._on_lookup(name, features is not None)
        if features is not None:
            traces.event("found in memory", {"critiq.stage": name})
        return features


@dataclass(frozen=True, slots=True)
class _Request:
    """One evaluation under way."""

    engine: Engine
    served: ServedModel
    picture: Picture
    prompt: str
    tokens: Mapping[str, Tokens]
    keys: Mapping[str, Key]
    found_below: set[str]
    """Stages whose outputs were on disk or in the network."""

    async def value(self, name: str, demand: Demand) -> Features:
        # Keyed by the served model as well: a model that is being unloaded takes no newcomers along.
        key = (id(self.served), self.keys[name])
        if traces.tracer is not None and key in self.engine._flights:
            traces.event("joined a computation under way", {"critiq.stage": name})
        return await self.engine._flights.join(key, demand, lambda flight: self._start(name, flight))

    def _start(self, name: str, flight: Flight[Features]) -> Awaitable[Features]:
        stage = self.served.model.stages[name]
        if self.engine.below is not None and name in self.served.lasting:
            return self._found_below_or_computed(stage, self.engine.below, flight)
        return self._compute(stage, flight)

    async def _found_below_or_computed(
        self, stage: LoadedStage, below: LowerTiers, flight: Flight[Features]
    ) -> Features:
        name = stage.spec.name
        with traces.span("look up below memory", {"critiq.stage": name}):
            features = await below.get(self.keys[name])
            traces.note({"critiq.found": features is not None})
        if features is None:
            return await self._compute(stage, flight)
        self.found_below.add(name)
        self.engine.store.put(self.keys[name], features)
        return features

    def _compute(self, stage: LoadedStage, flight: Flight[Features]) -> Awaitable[Features]:
        if stage.spec.name not in self.served.batchers:
            return self._refuse(stage)
        arrays = self._at_hand(stage)
        if arrays is None:
            return self._gather(stage, flight)
        return self._submit(stage, arrays, flight)

    async def _refuse(self, stage: LoadedStage) -> Features:
        raise _NotStored(frozenset([stage.spec.name]))

    def _at_hand(self, stage: LoadedStage) -> Inputs | None:
        """The stage's inputs if all are there: then no task is needed to wait for them."""
        arrays: dict[str, NDArray[Any]] = {}
        for tensor, source in stage.inputs:
            if isinstance(source, ImageInput):
                view = self.picture.seen(source.view)
                if view is None:
                    return None
                arrays[tensor] = view
            elif isinstance(source, PromptInput):
                arrays[tensor] = self._tokens(source)
            elif isinstance(source, TextInput):
                arrays[tensor] = np.array(self.prompt)
            else:
                return None
        return arrays

    async def _gather(self, stage: LoadedStage, flight: Flight[Features]) -> Features:
        return await self._submit(stage, await self._inputs(stage, flight), flight)

    def _submit(self, stage: LoadedStage, arrays: Inputs, flight: Flight[Features]) -> asyncio.Future[Features]:
        bucket = tuple(array.shape for array in arrays.values())
        outcome = self.served.batchers[stage.spec.name].enqueue(arrays, bucket, flight)
        if stage.spec.cache:
            outcome.add_done_callback(partial(self._keep, stage.spec.name))
        return outcome

    def _keep(self, name: str, outcome: asyncio.Future[Features]) -> None:
        if not outcome.cancelled() and outcome.exception() is None:
            self.engine.store.put(self.keys[name], outcome.result())
            self.engine.on_output(self.served, name, outcome.result())
            if self.engine.below is not None and name in self.served.lasting:
                self.engine.below.put(self.keys[name], outcome.result())

    async def _inputs(self, stage: LoadedStage, flight: Flight[Features]) -> Inputs:
        arrays: dict[str, NDArray[Any]] = {}
        upstream: dict[str, list[tuple[str, str]]] = {}
        for tensor, source in stage.inputs:
            if isinstance(source, ImageInput):
                arrays[tensor] = await self.picture.view(source.view, flight)
            elif isinstance(source, PromptInput):
                arrays[tensor] = self._tokens(source)
            elif isinstance(source, TextInput):
                arrays[tensor] = np.array(self.prompt)
            else:
                upstream.setdefault(source.stage, []).append((tensor, source.output))
        features = await self._upstream(list(upstream), flight)
        for (_, wanted), values in zip(upstream.items(), features, strict=True):
            for tensor, output in wanted:
                arrays[tensor] = values[output]
        return arrays

    def _tokens(self, source: PromptInput) -> NDArray[Any]:
        tokens = self.tokens[source.tokenizer]
        return tokens.ids if source.field == "ids" else tokens.mask

    async def _upstream(self, names: list[str], flight: Flight[Features]) -> Sequence[Features]:
        if len(names) == 1:
            return [await self._found_or_computed(names[0], flight)]
        waits = (self._found_or_computed(name, flight) for name in names)
        if not self.served.model.asks_lmms:
            return await asyncio.gather(*waits)
        # Waits for all of them, so that the refusal names everything that is missing.
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException) and not isinstance(outcome, _NotStored):
                raise outcome
        if refused := [outcome.stages for outcome in outcomes if isinstance(outcome, _NotStored)]:
            raise _NotStored(frozenset().union(*refused))
        return [outcome for outcome in outcomes if not isinstance(outcome, BaseException)]

    async def _found_or_computed(self, name: str, flight: Flight[Features]) -> Features:
        features = self.engine._look_up(self.served, name, self.keys[name])
        return features if features is not None else await self.value(name, flight)


def _output_keys(stages: Sequence[LoadedStage], picture: Key, prompt: Key) -> dict[str, Key]:
    keys: dict[str, Key] = {}
    for stage in stages:
        inputs = []
        for _, source in stage.inputs:
            if isinstance(source, ImageInput):
                inputs.append(picture)
            elif isinstance(source, PromptInput | TextInput):
                inputs.append(prompt)
            else:
                inputs.append(keys[source.stage])
        keys[stage.spec.name] = output_key(stage.digest, inputs)
    return keys


def _features_missing(served: ServedModel, stages: frozenset[str]) -> FeaturesMissing:
    runtimes = [(name, served.model.stages[name].lmm) for name in served.model.manifest.asks_lmms if name in stages]
    asked = ", ".join(f"{name!r} ({runtime.lmm.instruction})" for name, runtime in runtimes if runtime is not None)
    lmm = next(runtime.lmm.model for _, runtime in runtimes if runtime is not None)
    return FeaturesMissing(
        f"the store lacks the features {asked} of {lmm!r} for this picture, and this server computes none; build them "
        "with `critiq features build`, or serve with lmm.on_miss set to compute or remote",
        field="image",
    )


CPU_PIXEL_BYTES = 640_000
"""Picture bytes in one batch on a CPU. With more, a network's activations fall out of the cache between its layers: the
built-in quality encoder took 27 ms a picture alone, 36 ms in batches of 4 and 42 ms in batches of 16."""


def batch_limit(stage: LoadedStage, setting: int) -> int:
    """Items in one batch of ``stage`` at the most: what its bundle says, or ``setting`` if that is above 0 and less."""
    if setting:
        return min(setting, stage.spec.max_batch)
    views = [source.view for _, source in stage.inputs if isinstance(source, ImageInput)]
    if stage.runtime.provider != CPU or not views:
        return stage.spec.max_batch
    return min(stage.spec.max_batch, max(1, CPU_PIXEL_BYTES // sum(view.size_bytes for view in views)))
