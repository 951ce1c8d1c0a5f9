"""An LMM stage at run time: its question, and the extractor that answers it where there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from critiq_server.bundles.lmm import Lmm, OnMiss
from critiq_server.runtime.base import Arrays, TensorSpec
from critiq_server.runtime.lmm.base import FEATURE, Extractor, Instruction, Pixels

STORED = "stored features"
"""Provider of a stage that computes nothing."""


class NotComputedHere(RuntimeError):
    """A feature was asked for that is only served from the store."""


@dataclass(eq=False, frozen=True, slots=True)
class LmmRuntime:
    """See :class:`critiq_server.runtime.base.Runtime`.

    Args:
        lmm: the LMM and its question.
        on_miss: what happens to a feature that is not stored; ``stored`` means that ``extractor`` is ``None``.
        extractor: computes features, here or elsewhere.
    """

    lmm: Lmm
    on_miss: OnMiss
    extractor: Extractor | None

    @property
    def instruction(self) -> Instruction:
        return Instruction(self.lmm.instruction, self.lmm.text)

    @property
    def provider(self) -> str:
        return self.extractor.provider if self.extractor is not None else STORED

    @property
    def concurrency(self) -> int:
        return self.extractor.concurrency if self.extractor is not None else 1

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        return {FEATURE: TensorSpec("float32", (self.lmm.width,))}

    def run(self, inputs: Arrays, *, keep_memory: bool = True) -> Arrays:
        """``image`` is uint8 ``[batch, height, width, 3]``, ``prompt`` (where it is read) text ``[batch]``."""
        pictures = [np.asarray(picture, np.uint8) for picture in inputs["image"]]
        prompts = [str(prompt) for prompt in inputs["prompt"]] if self.lmm.reads_prompt else None
        return {FEATURE: self.ask(pictures, prompts)}

    def ask(self, pictures: Sequence[Pixels], prompts: Sequence[str] | None) -> NDArray[np.float32]:
        """Features of pictures of any sizes, float32 ``[pictures, width]``. Blocks.

        Raises ``NotComputedHere`` where there is no extractor.
        """
        if self.extractor is None:
            raise NotComputedHere(
                f"the features of {self.lmm.model!r} asked {self.lmm.instruction!r} are served from the store only"
            )
        return self.extractor.extract(pictures, prompts, [self.instruction])[:, 0]


@dataclass(frozen=True, slots=True)
class Question:
    """One picture, one instruction: what a batch of LMM work is made of."""

    picture: Pixels
    instruction: Instruction
    prompt: str


def answer(extractor: Extractor, questions: Sequence[Question]) -> list[Mapping[str, NDArray[np.generic]]]:
    """A feature for each question; those about one picture share the work on it. Blocks.

    Questions belong to one picture if they hold the same array and the same prompt, and pictures that are asked the
    same go to the extractor as one batch. A question that does not read the prompt rides with one that does.
    """
    pictures: dict[tuple[int, str], list[int]] = {}
    for number, question in enumerate(questions):
        pictures.setdefault(_picture_of(question, questions), []).append(number)
    batches: dict[tuple[Instruction, ...], list[list[int]]] = {}
    for members in pictures.values():
        asked = tuple(sorted({questions[number].instruction for number in members}, key=lambda entry: entry.id))
        batches.setdefault(asked, []).append(members)
    found: list[Mapping[str, NDArray[np.generic]]] = [{}] * len(questions)
    for asked, together in batches.items():
        first = [questions[members[0]] for members in together]
        prompts = [
            next((questions[n].prompt for n in members if questions[n].instruction.reads_prompt), "")
            for members in together
        ]
        features = extractor.extract([question.picture for question in first], prompts, asked)
        for row, members in zip(features, together, strict=True):
            for number in members:
                # A copy: a view would keep the whole batch's array alive in the store.
                found[number] = {FEATURE: row[asked.index(questions[number].instruction)].copy()}
    return found


def _picture_of(question: Question, questions: Sequence[Question]) -> tuple[int, str]:
    if question.instruction.reads_prompt:
        return id(question.picture), question.prompt
    same = (other for other in questions if other.picture is question.picture and other.instruction.reads_prompt)
    return id(question.picture), next((other.prompt for other in same), "")
