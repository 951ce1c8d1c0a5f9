"""Whether one model agrees with people better than another on the same pictures, or only by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from critiq_evaluation.statistics.arrays import Floats, paired, rows_pearson, why_undefined
from critiq_evaluation.statistics.contents import content_numbers, drawn
from critiq_evaluation.statistics.intervals import RESAMPLES

_BATCH_VALUES = 2_000_000


@dataclass(frozen=True)
class Difference:
    """SRCC of a first model less that of a second on the same pictures.

    Attributes:
        difference: -2..2; ``None`` where one of the correlations is not defined, which ``reason`` explains.
        low, high: the percentile interval at ``level``; pictures are drawn again for both models together.
        p_value: of the two-sided permutation test in which each picture's two ranks may change places; the smallest
            that it can give is 1 / (resamples + 1).
        contents: of so many contents pictures were drawn and changed places together; 0: one by one.
    """

    difference: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    level: float = 0.95
    resamples: int = 0
    reason: str = ""
    contents: int = 0


def compare_srcc(
    first: ArrayLike,
    second: ArrayLike,
    ratings: ArrayLike,
    *,
    contents: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compares two models' SRCC, taking into account that both scored the same pictures.

    Args:
        first, second, ratings: ``[count]`` each, in the same order of pictures, higher is better.
        contents: what each picture shows, where several may show the same.

    Raises:
        EvaluationError: the lengths differ.
    """
    a, y = paired(first, ratings)
    b, _ = paired(second, ratings)
    for name, scores in (("first", a), ("second", b)):
        reason = why_undefined(scores, y)
        if reason:
            return Difference(None, reason=f"{name} model: {reason}")
    a, b, y = stats.rankdata(a), stats.rankdata(b), stats.rankdata(y)
    difference = float(rows_pearson(a, y) - rows_pearson(b, y))
    if np.array_equal(a, b):
        return Difference(0.0, 0.0, 0.0, 1.0, level, resamples, "both models rank the pictures alike")
    numbers = content_numbers(contents, y.size)
    generator = np.random.default_rng(seed)
    low, high = np.quantile(_resampled(a, b, y, numbers, resamples, generator), [(1 - level) / 2, (1 + level) / 2])
    swapped = _swapped(a, b, y, np.arange(y.size) if numbers is None else numbers, resamples, generator)
    as_far = int((np.abs(swapped) >= abs(difference) - 1e-12).sum())
    return Difference(
        difference=difference,
        low=float(low),
        high=float(high),
        p_value=(as_far + 1) / (resamples + 1),
        level=level,
        resamples=resamples,
        contents=0 if numbers is None else int(numbers.max()) + 1,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for that many tests (Holm 1979), in their order: the chance of any false alarm is held."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def _difference(a: Any, b: Any, y: Any) -> Floats:
    return rows_pearson(a, y) - rows_pearson(b, y)


def _resampled(
    a: Floats, b: Floats, y: Floats, numbers: NDArray[np.intp] | None, resamples: int, generator: np.random.Generator
) -> Floats:
    """The difference for each resample ``[resamples]``."""
    if numbers is not None:
        places = drawn(numbers, resamples, generator)
        return np.array([_difference(*(stats.rankdata(values[place]) for values in (a, b, y))) for place in places])
    found = []
    for count in _batches(resamples, y.size):
        chosen = generator.integers(y.size, size=(count, y.size))
        found.append(_difference(*(stats.rankdata(values[chosen], axis=-1) for values in (a, b, y))))
    return np.concatenate(found)


def _swapped(
    a: Floats, b: Floats, y: Floats, numbers: NDArray[np.intp], resamples: int, generator: np.random.Generator
) -> Floats:
    """The difference ``[resamples]`` where the two ranks of each content's pictures change places by a coin's toss.

    SciPy's permutation test would toss for each picture by itself.
    """
    found = []
    for count in _batches(resamples, y.size):
        swap = (generator.random((count, numbers.max() + 1)) < 0.5)[:, numbers]
        found.append(_difference(np.where(swap, b, a), np.where(swap, a, b), y))
    return np.concatenate(found)


def _batches(resamples: int, count: int) -> list[int]:
    """How many resamples at once, so that memory stays bounded."""
    size = max(1, _BATCH_VALUES // count)
    return [min(size, resamples - start) for start in range(0, resamples, size)]
