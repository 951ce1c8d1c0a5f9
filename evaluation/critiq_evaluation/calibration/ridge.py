"""Ridge regression in closed form: ratings from the features of a frozen network, on a fifth of the labels.

The weak supervision of ELIQ: the backbone stays as it is, a linear regressor on its features learns the scale from a
few ratings. With the features standardised and the ratings centred, w = (X'X + a I)^-1 X'y, computed from the singular
values of X, so that all penalties cost one decomposition (Hastie, Tibshirani and Friedman, The Elements of Statistical
Learning, eq. 3.47).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.statistics.arrays import Floats, is_constant

PENALTIES: tuple[float, ...] = tuple(float(10**power) for power in np.arange(-2.0, 6.01, 0.5))
"""Tried by cross-validation; as many as to span nearly none (1e-2) and nearly all (1e6)."""
_FOLDS = 5
MIN_LABELS = 10


@dataclass(frozen=True)
class Head:
    """rating = features @ weights + intercept; the standardisation is folded in. ``penalty`` is the one chosen."""

    weights: Floats
    intercept: float
    penalty: float

    def __call__(self, features: Floats) -> Floats:
        """``[pictures, width]`` to ratings ``[pictures]``."""
        return np.asarray(features @ self.weights + self.intercept)


@dataclass(frozen=True)
class Agreement:
    """SRCC and PLCC on pictures that were not fitted: mean and standard deviation over the repeats."""

    srcc: float
    srcc_spread: float
    plcc: float
    plcc_spread: float


@dataclass(frozen=True)
class Trial:
    """``head`` on the pictures left after drawing ``labels`` of them, and the label-free score on the same ones.

    ``undefined`` repeats had a constant prediction on one side and are left out.
    """

    labels: int
    tested: int
    repeats: int
    head: Agreement
    label_free: Agreement | None
    undefined: int


def fit_ridge(features: Floats, ratings: Floats, seed: int = 0) -> Head:
    """The head whose penalty has the smallest error in five-fold cross-validation.

    Raises:
        EvaluationError: fewer than ten labels, values that are not finite, constant ratings or features.
    """
    if len(ratings) < MIN_LABELS:
        raise EvaluationError(f"{len(ratings)} labelled pictures; a linear head needs {MIN_LABELS} or more")
    if not (np.isfinite(features).all() and np.isfinite(ratings).all()):
        raise EvaluationError("features or ratings are not finite; leave those pictures out")
    if is_constant(ratings):
        raise EvaluationError(f"all {len(ratings)} ratings are {ratings[0]:g}; there is nothing to learn")
    if not np.ptp(features, axis=0).any():
        raise EvaluationError("the features are the same for every picture; choose another output")
    errors = np.zeros(len(PENALTIES))
    order = np.random.default_rng(seed).permutation(len(ratings))
    for test in np.array_split(order, _FOLDS):
        train = np.setdiff1d(order, test)
        heads = _path(features[train], ratings[train], PENALTIES)
        errors += [float(np.sum((head(features[test]) - ratings[test]) ** 2)) for head in heads]
    best = PENALTIES[int(np.argmin(errors))]
    return _path(features, ratings, (best,))[0]


def weak_supervision(
    features: Floats,
    ratings: Floats,
    label_free: Floats | None = None,
    *,
    share: float = 0.2,
    repeats: int = 20,
    seed: int = 0,
) -> Trial:
    """Draws ``share`` of the labels, fits a head, tests it on all other pictures; again and again.

    Args:
        label_free: ``[pictures]``, what the model says without any label, higher is better.

    Raises:
        EvaluationError: see :func:`fit_ridge`; or fewer than ten pictures are left to test on.
    """
    count = round(share * len(ratings))
    if count < MIN_LABELS or len(ratings) - count < MIN_LABELS:
        raise EvaluationError(
            f"{100 * share:g} % of {len(ratings)} labelled pictures are {count}; {MIN_LABELS} or more are due, and as "
            "many to test on"
        )
    rng = np.random.default_rng(seed)
    found: list[list[float]] = []
    for repeat in range(repeats):
        order = rng.permutation(len(ratings))
        train, test = order[:count], order[count:]
        said = fit_ridge(features[train], ratings[train], seed + repeat)(features[test])
        row = _correlations(said, ratings[test])
        found.append(row + (_correlations(label_free[test], ratings[test]) if label_free is not None else []))
    rows = np.array(found)
    whole = rows[np.isfinite(rows).all(axis=1)]
    if not len(whole):
        raise EvaluationError("every repeat gave constant predictions: these features say nothing of the ratings")
    mean, spread = whole.mean(axis=0), whole.std(axis=0)
    summaries = [
        Agreement(float(mean[at]), float(spread[at]), float(mean[at + 1]), float(spread[at + 1]))
        for at in range(0, rows.shape[1], 2)
    ]
    return Trial(
        count,
        len(ratings) - count,
        repeats,
        summaries[0],
        summaries[1] if len(summaries) > 1 else None,
        repeats - len(whole),
    )


def _path(features: Floats, ratings: Floats, penalties: tuple[float, ...]) -> list[Head]:
    """A head for each penalty."""
    centre, scale = features.mean(axis=0), features.std(axis=0)
    # A feature that hardly moves on these pictures would get an enormous weight for others.
    scale = np.where(scale > 1e-6 * max(float(scale.max()), 1e-30), scale, np.inf)
    u, s, v = np.linalg.svd((features - centre) / scale, full_matrices=False)
    target = u.T @ (ratings - ratings.mean())
    heads = []
    for penalty in penalties:
        weights = (v.T @ (s / (s**2 + penalty) * target)) / scale
        heads.append(Head(weights, float(ratings.mean() - centre @ weights), penalty))
    return heads


def _correlations(said: Floats, ratings: Floats) -> list[float]:
    if is_constant(said) or is_constant(ratings):
        return [np.nan, np.nan]
    return [float(stats.spearmanr(said, ratings).statistic), float(np.corrcoef(said, ratings)[0, 1])]
