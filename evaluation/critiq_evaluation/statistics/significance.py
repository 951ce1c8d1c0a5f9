"""Whether one model agrees with people better than another on the same pictures, or only by chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from critiq_evaluation.statistics.arrays import Floats, paired, rows_pearson, why_undefined
from critiq_evaluation.statistics.intervals import RESAMPLES

_BATCH_VALUES = 2_000_000


@dataclass(frozen=True)
class Difference:
    """SRCC of a first model less that of a second on the same pictures.

    Attributes:
        difference: -2..2; ``None`` where one of the correlations is not defined, which ``reason`` explains.
        low, high: the percentile interval at ``level``; pictures are drawn again for both models together.
        p_value: of the two-sided permutation test in which each picture's two ranks may change places; the smallest
            that it can give is 2 / (resamples + 1).
    """

    difference: float | None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    level: float = 0.95
    resamples: int = 0
    reason: str = ""


def compare_srcc(
    first: ArrayLike,
    second: ArrayLike,
    ratings: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compares two models' SRCC, taking into account that both scored the same pictures.

    Args:
        first, second, ratings: ``[count]`` each, in the same order of pictures, higher is better.

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
    generator = np.random.default_rng(seed)
    low, high = np.quantile(_resampled(a, b, y, resamples, generator), [(1 - level) / 2, (1 + level) / 2])
    test = stats.permutation_test(
        (a, b),
        lambda one, other, axis=-1: _difference(one, other, y),
        permutation_type="samples",
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, _BATCH_VALUES // y.size),
        rng=generator,
    )
    return Difference(difference, float(low), float(high), float(test.pvalue), level, resamples)


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


def _resampled(a: Floats, b: Floats, y: Floats, resamples: int, generator: np.random.Generator) -> Floats:
    """The difference for each resample ``[resamples]``; a batch of them at a time."""
    batch = max(1, _BATCH_VALUES // y.size)
    found = []
    for start in range(0, resamples, batch):
        drawn = generator.integers(y.size, size=(min(batch, resamples - start), y.size))
        ranked = [stats.rankdata(values[drawn], axis=-1) for values in (a, b, y)]
        found.append(_difference(*ranked))
    return np.concatenate(found)
