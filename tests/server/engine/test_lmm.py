"""Batches of questions to an LMM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from critiq.errors import CritiqError, Internal
from critiq_server.engine.lmm import answer_all
from critiq_server.runtime.lmm.base import Instruction, Pixels
from critiq_server.runtime.lmm.stage import Question

FIRST, SECOND = Instruction("first", "How sharp?"), Instruction("second", "How pretty?")


class Picky:
    """Fails on every call that holds a picture with a level of 13."""

    provider, concurrency, gathers = "picky", 1, True

    def bucket(self, height: int, width: int) -> int:
        return 0

    def extract(
        self, pictures: Sequence[Pixels], prompts: Sequence[str] | None, instructions: Sequence[Instruction]
    ) -> NDArray[np.float32]:
        levels = [int(picture[0, 0, 0]) for picture in pictures]
        if 13 in levels:
            raise MemoryError("too large")
        return np.array([[[level, len(entry.text)] for entry in instructions] for level in levels], np.float32)

    def close(self) -> None:
        pass


def picture(level: int) -> Pixels:
    return np.full((2, 2, 3), level, np.uint8)


def test_one_bad_picture_does_not_fail_its_neighbours() -> None:
    pictures = [picture(level) for level in (1, 13, 2)]
    questions = [Question(seen, asked, "") for seen in pictures for asked in (FIRST, SECOND)]
    found = answer_all(Picky(), questions)
    assert [isinstance(outcome, Internal) for outcome in found] == [False, False, True, True, False, False]
    values = [outcome["feature"].tolist() for outcome in found if not isinstance(outcome, CritiqError)]
    assert values == [[1, 10], [1, 11], [2, 10], [2, 11]]


def test_a_picture_alone_fails_as_it_does() -> None:
    with pytest.raises(MemoryError, match="too large"):
        answer_all(Picky(), [Question(picture(13), FIRST, "")])
