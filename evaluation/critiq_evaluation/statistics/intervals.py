"""Bootstrap confidence intervals: pictures are drawn again, with replacement, and the figure is computed anew.

With ``contents``, the content of each picture, all pictures of a content are drawn together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from critiq_evaluation.statistics.arrays import Floats, paired, rows_pearson, why_undefined
from critiq_evaluation.statistics.contents import content_numbers, drawn

RESAMPLES = 1000
_BCA_PICTURES = 1500
"""Beyond, percentile: BCa's jackknife grows with the square of the pictures, and the two agree to the third place."""
_BATCH_VALUES = 2_000_000


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high`` at ``level`` (0.95: 95 %); ``method`` is SciPy's name for it.

    ``contents``: of so many contents pictures were drawn together; 0: they were drawn one by one.
    """

    low: float
    high: float
    level: float
    method: Literal["BCa", "percentile"]
    resamples: int
    contents: int = 0


def bootstrap_srcc(
    scores: ArrayLike,
    ratings: ArrayLike,
    *,
    contents: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of Spearman's correlation; ``None`` where that is not defined."""

    def srcc(x: Any, y: Any, axis: int = -1) -> Any:
        return rows_pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))

    return bootstrap(scores, ratings, srcc, contents=contents, level=level, resamples=resamples, seed=seed)


def bootstrap_plcc(
    scores: ArrayLike,
    ratings: ArrayLike,
    *,
    contents: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of Pearson's correlation; for PLCC after a fit give fitted scores: the curve is then held fixed."""

    def plcc(x: Any, y: Any, axis: int = -1) -> Any:
        return rows_pearson(x, y)

    return bootstrap(scores, ratings, plcc, contents=contents, level=level, resamples=resamples, seed=seed)


def bootstrap(
    scores: ArrayLike,
    ratings: ArrayLike,
    statistic: Callable[..., Any],
    *,
    contents: Sequence[str] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of any figure of scores and ratings.

    Args:
        scores, ratings: ``[count]``; a picture's score and rating are drawn together.
        statistic: ``(x, y, axis)`` with arrays ``[..., count]`` to ``[...]``.
        contents: what each picture shows, where several may show the same.
        seed: the same seed gives the same interval.

    Returns:
        BCa (bias-corrected and accelerated: Efron 1987) for up to 1500 pictures; percentile beyond, where BCa is not
        defined, and for pictures drawn by content; ``None`` where the values are too few, constant or not finite.

    Raises:
        EvaluationError: the lengths differ.
    """
    x, y = paired(scores, ratings)
    if why_undefined(x, y):
        return None
    numbers = content_numbers(contents, x.size)
    if numbers is not None:
        places = drawn(numbers, resamples, np.random.default_rng(seed))
        found = [float(statistic(x[place], y[place], axis=-1)) for place in places]
        low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
        return Interval(float(low), float(high), level, "percentile", resamples, int(numbers.max()) + 1)
    methods: tuple[Literal["BCa", "percentile"], ...] = (
        ("BCa", "percentile") if x.size <= _BCA_PICTURES else ("percentile",)
    )
    for method in methods:
        low, high = _limits(x, y, statistic, method, level, resamples, seed)
        if np.isfinite(low) and np.isfinite(high):
            return Interval(low, high, level, method, resamples)
    return None


def _limits(
    x: Floats, y: Floats, statistic: Callable[..., Any], method: str, level: float, resamples: int, seed: int
) -> tuple[float, float]:
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # BCa of a degenerate distribution is NaN, which the caller looks for
        found = stats.bootstrap(
            (x, y),
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            batch=max(1, _BATCH_VALUES // x.size),
            confidence_level=level,
            method=method,
            rng=np.random.default_rng(seed),
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)
