"""One model's scores against people's ratings: the row of a paper's table."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from critiq_evaluation.statistics.arrays import Floats, paired, why_undefined
from critiq_evaluation.statistics.fits import Fit, FitName, fit_curve

FEW_PICTURES = 30


@dataclass(frozen=True)
class Agreement:
    """How far scores agree with ratings. What is not defined is ``None``, never NaN, and ``reason`` says why.

    Attributes:
        count: pictures.
        srcc: Spearman's rank correlation, -1..1, mean ranks for ties.
        krcc: Kendall's tau-b, -1..1.
        tau_c: Kendall's tau-c (Stuart), -1..1: for ratings of few levels.
        plcc: Pearson's correlation of the raw scores, -1..1.
        plcc_fitted: Pearson's correlation after the curve; ``None`` where ``fit.state`` is ``failed``.
        rmse: root mean square error after the curve, on the ratings' scale; ``None`` where the fit failed, and without
            a curve, as raw scores need not be on the ratings' scale.
        fit: the curve, or why there is none.
        reason: why nothing is defined; empty otherwise.
        notes: what limits the figures: ties, few pictures, a curve that falls.
    """

    count: int
    srcc: float | None
    krcc: float | None
    tau_c: float | None
    plcc: float | None
    plcc_fitted: float | None
    rmse: float | None
    fit: Fit
    reason: str = ""
    notes: tuple[str, ...] = ()


def measure(scores: ArrayLike, ratings: ArrayLike, fit: FitName = "logistic4") -> Agreement:
    """Correlations before the fit, PLCC and RMSE after it; the curve is fitted to these same pictures, as papers do.

    Args:
        scores: ``[count]``, higher is better; negate those of a dimension where lower is better.
        ratings: ``[count]``, mean opinion scores, higher is better.

    Raises:
        EvaluationError: the lengths differ.
    """
    x, y = paired(scores, ratings)
    curve = fit_curve(x, y, fit)
    reason = why_undefined(x, y)
    if reason:
        return Agreement(x.size, None, None, None, None, None, None, curve, reason)
    plcc_fitted = rmse = None
    if curve.state == "ok":
        fitted = curve(x)
        plcc_fitted = float(np.corrcoef(fitted, y)[0, 1])
        rmse = None if fit == "none" else float(np.sqrt(np.mean((fitted - y) ** 2)))
    return Agreement(
        count=x.size,
        srcc=float(stats.spearmanr(x, y).statistic),
        krcc=float(stats.kendalltau(x, y, method="asymptotic").statistic),
        tau_c=float(stats.kendalltau(x, y, method="asymptotic", variant="c").statistic),
        plcc=float(np.corrcoef(x, y)[0, 1]),
        plcc_fitted=plcc_fitted,
        rmse=rmse,
        fit=curve,
        notes=_notes(x, y, curve),
    )


def _notes(x: Floats, y: Floats, curve: Fit) -> tuple[str, ...]:
    notes = []
    if x.size < FEW_PICTURES:
        notes.append(f"only {x.size} pictures: read the intervals, not the figures")
    for name, values in (("scores", x), ("ratings", y)):
        tied = values.size - np.unique(values, return_counts=True)[1].tolist().count(1)
        if tied > values.size / 10:
            notes.append(f"{tied} of {values.size} {name} are tied; SRCC gives ties their mean rank")
    if curve.note:
        notes.append(curve.note)
    return tuple(notes)
