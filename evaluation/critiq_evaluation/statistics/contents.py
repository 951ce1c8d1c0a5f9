"""Pictures of one content, a prompt or a reference picture, are alike: drawn one by one, intervals are too narrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from critiq_evaluation.errors import EvaluationError

FEWEST = 10
"""Of fewer contents nothing can be said by drawing them; pictures are then drawn one by one."""


def content_numbers(contents: Sequence[str] | None, count: int) -> NDArray[np.intp] | None:
    """The number of each picture's content, from 0; ``None`` where pictures are to be drawn one by one: no content has
    two pictures, or there are fewer than 10 contents.

    Raises:
        EvaluationError: not every picture has a content.
    """
    if contents is None:
        return None
    if len(contents) != count:
        raise EvaluationError(f"{len(contents)} contents for {count} pictures; each picture needs one")
    names, numbers = np.unique(np.asarray(contents, dtype=object).astype(str), return_inverse=True)
    return numbers if FEWEST <= names.size < count else None


def drawn(numbers: NDArray[np.intp], resamples: int, generator: np.random.Generator) -> Iterator[NDArray[Any]]:
    """For each resample the places of the pictures of as many contents as there are, drawn with replacement."""
    order = np.argsort(numbers, kind="stable")
    sizes = np.bincount(numbers)
    starts = np.cumsum(sizes) - sizes  # of each content in `order`
    for _ in range(resamples):
        chosen = generator.integers(sizes.size, size=sizes.size)
        lengths = sizes[chosen]
        before = np.cumsum(lengths) - lengths  # pictures drawn before each chosen content
        yield order[np.repeat(starts[chosen] - before, lengths) + np.arange(lengths.sum())]
