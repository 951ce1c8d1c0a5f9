"""What a map is worth on pictures that it was not fitted to, and how many labels it needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from critiq_evaluation.calibration.curves import METHODS, Map, Method, fit_map
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.statistics.arrays import Floats, why_undefined

MIN_LABELS = 10
"""Fewer leave nothing to hold out: a fifth of them is two pictures."""
FEW_LABELS = 50
ENOUGH = 1.05
"""So many labels are enough whose error is at most this many times that of all of them."""
_FLAT = 0.7
"""The curve must be flat over the last part of it, or nothing says that it is."""
_SIZES = (10, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000)


@dataclass(frozen=True)
class Errors:
    """Held-out errors in the ratings' unit: mean and standard deviation over the repeats.

    ``plcc`` is ``None`` where a prediction was constant.
    """

    rmse: float
    rmse_spread: float
    mae: float
    mae_spread: float
    plcc: float | None
    failed: int = 0
    """Folds whose fit failed; the error is of the others."""


@dataclass(frozen=True)
class LearningPoint:
    """The held-out RMSE of maps fitted to ``labels`` pictures: mean and spread over the draws whose fit succeeded."""

    labels: int
    rmse: float
    spread: float
    draws: int
    failed: int


@dataclass(frozen=True)
class LearningCurve:
    """``enough`` is the smallest number of labels from which on the mean error stays within 5 % of that of the most.

    It is ``None`` where that is more than 0.7 of the most: more labels might still help.
    """

    points: tuple[LearningPoint, ...]
    enough: int | None
    note: str


def check_labels(scores: Floats, ratings: Floats) -> None:
    """Raises :class:`EvaluationError` where no map can be fitted: too few, constant, not finite, no relation."""
    reason = why_undefined(scores, ratings)
    if reason:
        raise EvaluationError(f"fit: failed: {reason}")
    if scores.size < MIN_LABELS:
        raise EvaluationError(f"{scores.size} labelled pictures with a score; calibration needs {MIN_LABELS} or more")
    srcc = float(stats.spearmanr(scores, ratings).statistic)
    if srcc <= 0:
        raise EvaluationError(
            f"fit: failed: SRCC of scores and ratings is {srcc:.4f}: higher scores go with lower ratings, or none; "
            "is it the right dimension, and are higher ratings better? (--scale MAX:MIN where lower is better)"
        )


def cross_validated(
    scores: Floats,
    ratings: Floats,
    method: Method,
    bounds: tuple[float, float],
    *,
    folds: int = 5,
    repeats: int = 10,
    seed: int = 0,
) -> Errors | None:
    """Held-out errors of one method by repeated k-fold cross-validation; ``None`` if every fit failed.

    Each repeat deals the pictures anew; every method with the same seed sees the same folds.
    """
    rows, failed = [], 0
    for predicted, bad in _held_out(scores, ratings, method, bounds, folds, repeats, seed):
        failed += bad
        known = np.isfinite(predicted)
        if known.sum() >= 2:
            rows.append(_errors(predicted[known], ratings[known]))
    if not rows:
        return None
    rmse, mae, plcc = (np.array(column) for column in zip(*rows, strict=True))
    return Errors(
        float(rmse.mean()),
        float(rmse.std()),
        float(mae.mean()),
        float(mae.std()),
        float(plcc.mean()) if np.isfinite(plcc).all() else None,
        failed,
    )


def errors_of(predicted: Floats, ratings: Floats) -> Errors:
    """Errors of predictions that owe nothing to these ratings."""
    rmse, mae, plcc = _errors(predicted, ratings)
    return Errors(rmse, 0.0, mae, 0.0, plcc if np.isfinite(plcc) else None)


def held_out_predictions(
    scores: Floats, ratings: Floats, method: Method, bounds: tuple[float, float], *, folds: int = 5, seed: int = 0
) -> Floats:
    """For each picture what a map says that was fitted without it; NaN where the fit failed."""
    return next(_held_out(scores, ratings, method, bounds, folds, 1, seed))[0]


def choose(found: dict[Method, Errors | None]) -> Method:
    """The simplest method whose error is within one standard deviation (over the repeats) of the smallest.

    Raises:
        EvaluationError: every method failed.
    """
    usable = {name: errors for name, errors in found.items() if errors is not None and not errors.failed}
    usable = usable or {name: errors for name, errors in found.items() if errors is not None}
    if not usable:
        raise EvaluationError("fit: failed: no method gives a map that rises with the scores")
    best = min(usable.values(), key=lambda errors: errors.rmse)
    for name in METHODS:
        if name in usable and usable[name].rmse <= best.rmse + best.rmse_spread:
            return name
    raise AssertionError("the best is within reach of itself")


def learning_curve(
    scores: Floats, ratings: Floats, method: Method, bounds: tuple[float, float], *, draws: int = 20, seed: int = 0
) -> LearningCurve:
    """The error by number of labels, on a fifth of the pictures that is drawn anew for each draw.

    The smaller sets of a draw are part of its larger ones.
    """
    rng = np.random.default_rng(seed)
    held = max(2, scores.size // 5)
    most = scores.size - held
    sizes = sorted({size for size in _SIZES if size < most} | {most})
    found: dict[int, list[float]] = {size: [] for size in sizes}
    for _ in range(draws):
        order = rng.permutation(scores.size)
        test, rest = order[:held], order[held:]
        for size in sizes:
            fitted = fit_map(scores[rest[:size]], ratings[rest[:size]], method, bounds)
            if fitted.state == "ok":
                found[size].append(_errors(fitted(scores[test]), ratings[test])[0])
    points = tuple(
        LearningPoint(size, float(np.mean(values)), float(np.std(values)), len(values), draws - len(values))
        for size, values in found.items()
        if values
    )
    return _judged(points, most)


def _judged(points: Sequence[LearningPoint], most: int) -> LearningCurve:
    if not points or points[-1].labels != most:
        return LearningCurve(tuple(points), None, f"fits to {most} labels failed, so nothing can be said")
    limit = ENOUGH * points[-1].rmse
    enough = most
    for point in reversed(points):
        if point.rmse > limit:
            break
        enough = point.labels
    if enough > _FLAT * most:
        note = f"{most} labels are not shown to be enough: only from {enough} on is the error within 5 %; collect more"
        return LearningCurve(tuple(points), None, note)
    return LearningCurve(tuple(points), enough, f"{enough} labels give an error within 5 % of that of {most}")


def _held_out(
    scores: Floats,
    ratings: Floats,
    method: Method,
    bounds: tuple[float, float],
    folds: int,
    repeats: int,
    seed: int,
) -> Iterator[tuple[Floats, int]]:
    rng = np.random.default_rng(seed)
    for _ in range(repeats):
        predicted, failed = np.full(scores.size, np.nan), 0
        order = rng.permutation(scores.size)
        for test in np.array_split(order, min(folds, scores.size)):
            train = np.setdiff1d(order, test)
            fitted: Map = fit_map(scores[train], ratings[train], method, bounds)
            if fitted.state == "ok":
                predicted[test] = fitted(scores[test])
            else:
                failed += 1
        yield predicted, failed


def _errors(predicted: Floats, ratings: Floats) -> tuple[float, float, float]:
    difference = predicted - ratings
    with np.errstate(all="ignore"):
        plcc = float(np.corrcoef(predicted, ratings)[0, 1]) if np.ptp(predicted) > 0 and np.ptp(ratings) > 0 else np.nan
    return float(np.sqrt(np.mean(difference**2))), float(np.abs(difference).mean()), plcc
