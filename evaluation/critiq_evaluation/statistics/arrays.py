"""What the statistics take: two rows of numbers that belong together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from critiq_evaluation.errors import EvaluationError

Floats = NDArray[np.float64]

MIN_PICTURES = 3
"""Fewer pictures have no correlation worth the name: two always give 1 or -1."""


def paired(scores: ArrayLike, ratings: ArrayLike) -> tuple[Floats, Floats]:
    """Both as float64 ``[count]``.

    Raises:
        EvaluationError: they have not one axis each, or not the same length.
    """
    x, y = np.asarray(scores, np.float64), np.asarray(ratings, np.float64)
    if x.ndim != 1 or y.ndim != 1:
        raise EvaluationError(f"scores of shape {list(x.shape)} and ratings of shape {list(y.shape)}; one axis is due")
    if len(x) != len(y):
        raise EvaluationError(f"{len(x)} scores and {len(y)} ratings; there has to be a rating for each score")
    return x, y


def why_undefined(scores: Floats, ratings: Floats) -> str:
    """Why there is no correlation between them; empty where there is one."""
    for name, values in (("scores", scores), ("ratings", ratings)):
        bad = np.flatnonzero(~np.isfinite(values))
        if bad.size:
            where = f"the first at position {bad[0]}, {values[bad[0]]}"
            return f"{bad.size} of {values.size} {name} are not finite ({where}); leave those pictures out"
    if scores.size < MIN_PICTURES:
        return f"{scores.size} pictures; a correlation needs {MIN_PICTURES} or more"
    for name, values in (("scores", scores), ("ratings", ratings)):
        if is_constant(values):
            return f"all {values.size} {name} are {values[0]:g}; a constant correlates with nothing"
    return ""


def is_constant(values: Floats) -> bool:
    """Whether they differ by no more than rounding: a spread below 1e-12 of their size leaves nothing to correlate."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def rows_pearson(x: Any, y: Any) -> Floats:
    """Pearson correlation along the last axis; 0 where a row is constant, as a resample of few pictures can be."""
    x = x - x.mean(axis=-1, keepdims=True)
    y = y - y.mean(axis=-1, keepdims=True)
    scale = np.sqrt((x * x).sum(axis=-1) * (y * y).sum(axis=-1))
    product = (x * y).sum(axis=-1)
    return np.asarray(np.divide(product, scale, out=np.zeros_like(product), where=scale > 0))
