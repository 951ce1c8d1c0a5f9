"""LMM stages in the engine: all questions to one LMM go through one batcher, so that those about one picture meet.

Each question is a stage of its own, with a feature and a key of its own. But the work on the picture's tokens, most of
the whole, is the same for all of them; so the stages of a model that ask the same LMM share its queue.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from critiq.errors import CritiqError
from critiq_server.bundles.lmm import Backbone, OnMiss
from critiq_server.bundles.model import LoadedModel
from critiq_server.engine.batcher import Batcher
from critiq_server.engine.demand import Demand
from critiq_server.features.records import Features
from critiq_server.runtime.lmm.base import Extractor, Instruction
from critiq_server.runtime.lmm.stage import Question, answer
from critiq_server.telemetry.faults import internal

Queue = Batcher[Question, Features]
MakeQueue = Callable[[str, Callable[[list[Question]], Sequence[Features | CritiqError]], int, int], Queue]
"""Makes a batcher: name, what it computes, items in a batch at the most, batches at once."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One stage's way to its LMM; stands where other stages have a batcher."""

    queue: Queue
    extractor: Extractor
    instruction: Instruction

    def enqueue(self, inputs: Mapping[str, NDArray[Any]], bucket: Hashable, demand: Demand) -> asyncio.Future[Features]:
        """See :meth:`Batcher.enqueue`; pictures of different shapes meet if they have as many tokens."""
        picture: NDArray[np.uint8] = inputs["image"]
        prompt = str(inputs["prompt"]) if "prompt" in inputs else ""
        tokens = self.extractor.bucket(picture.shape[0], picture.shape[1])
        return self.queue.enqueue(Question(picture, self.instruction, prompt), tokens, demand)

    async def close(self) -> None:
        """Refuses what is still waiting; returns once running batches have ended."""
        await self.queue.close()


def answer_all(extractor: Extractor, questions: Sequence[Question]) -> Sequence[Features | CritiqError]:
    """Answers in one go; if that fails, picture by picture, so that one bad picture never fails its neighbours.

    In a worker thread. Raises what a batch of a single picture raises.
    """
    try:
        return answer(extractor, questions)
    except Exception:
        pictures = {id(question.picture) for question in questions}
        if len(pictures) == 1:
            raise
    found: list[Features | CritiqError] = [{}] * len(questions)
    for picture in pictures:
        numbers = [number for number, question in enumerate(questions) if id(question.picture) == picture]
        try:
            outcomes: Sequence[Features | CritiqError] = answer(extractor, [questions[number] for number in numbers])
        except Exception as error:
            failure = error if isinstance(error, CritiqError) else internal("asking an LMM", error)
            outcomes = [failure] * len(numbers)
        for number, outcome in zip(numbers, outcomes, strict=True):
            found[number] = outcome
    return found


def open_lanes(model: LoadedModel, make: MakeQueue) -> dict[str, Lane]:
    """A lane for every stage of ``model`` that computes features; those that ask one LMM share its queue."""
    by_lmm: dict[tuple[Backbone, OnMiss], list[str]] = {}
    for name, stage in model.stages.items():
        if stage.lmm is not None and stage.lmm.extractor is not None:
            by_lmm.setdefault((stage.lmm.lmm.asked(), stage.lmm.on_miss), []).append(name)
    lanes: dict[str, Lane] = {}
    for names in by_lmm.values():
        runtimes = [model.stages[name].lmm for name in names]
        first = runtimes[0]
        assert first is not None and first.extractor is not None  # noqa: S101, PT018 - chosen so above
        # Where nothing is gained by it, no question shares a call with another, whose failure would be its own.
        size = sum(model.stages[name].spec.max_batch for name in names) if first.extractor.gathers else 1
        queue = make(names[0], partial(answer_all, first.extractor), size, first.extractor.concurrency)
        lanes |= {
            name: Lane(queue, first.extractor, runtime.instruction)
            for name, runtime in zip(names, runtimes, strict=True)
            if runtime is not None
        }
    return lanes
