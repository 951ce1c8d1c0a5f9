"""Bootstrap confidence intervals: pictures are drawn again, with replacement, and the figure is computed anew."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from critiq_evaluation.statistics.arrays import Floats, paired, rows_pearson, why_undefined

RESAMPLES = 1000
_BCA_PICTURES = 1500
"""Beyond, percentile: BCa's jackknife grows with the square of the pictures, and the two agree to the third place."""
_BATCH_VALUES = 2_000_000


@dataclass(frozen=True)
class Interval:
    """From ``low`` to ``high`` at ``level`` (0.95: 95 %); ``method`` is SciPy's name for it."""

    low: float
    high: float
    level: float
    method: Literal["BCa", "percentile"]
    resamples: int


def bootstrap_srcc(
    scores: ArrayLike, ratings: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The interval of Spearman's correlation; ``None`` where that is not defined."""

    def srcc(x: Any, y: Any, axis: int = -1) -> Any:
        return rows_pearson(stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1))

    return bootstrap(scores, ratings, srcc, level=level, resamples=resamples, seed=seed)


def bootstrap_plcc(
    scores: ArrayLike, ratings: ArrayLike, *, level: float = 0.95, resamples: int = RESAMPLES, seed: int = 0
) -> Interval | None:
    """The interval of Pearson's correlation; for PLCC after a fit give fitted scores: the curve is then held fixed."""

    def plcc(x: Any, y: Any, axis: int = -1) -> Any:
        return rows_pearson(x, y)

    return bootstrap(scores, ratings, plcc, level=level, resamples=resamples, seed=seed)


def bootstrap(
    scores: ArrayLike,
    ratings: ArrayLike,
    statistic: Callable[..., Any],
    *,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval | None:
    """The interval of any figure of scores and ratings.

    Args:
        scores, ratings: ``[count]``; a picture's score and rating are drawn together.
        statistic: ``(x, y, axis)`` with arrays ``[..., count]`` to ``[...]``.
        seed: the same seed gives the same interval.

    Returns:
        BCa (bias-corrected and accelerated: Efron 1987) for up to 1500 pictures, percentile beyond and where BCa is not
        defined; ``None`` where the values are too few, constant or not finite.
    """
    x, y = paired(scores, ratings)
    if why_undefined(x, y):
        return None
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
