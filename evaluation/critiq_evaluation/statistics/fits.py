"""The curves through which papers send scores before they state PLCC and RMSE: x is the score, y the rating.

- ``logistic4``: (b1-b2)/(1+exp(-(x-b3)/b4)) + b2, from max y, min y, mean x, std x / 4. VQEG's; pyiqa, DeQA.
- ``logistic4-sjtu``: the same with abs(b4), from max y, min y, mean x, 0.5. MA-AGIQA.
- ``logistic5``: b1(0.5-1/(1+exp(b2(x-b3)))) + b4 x + b5 of the standardised x; its start is below. VQEG's; AIGIQA-20K
  eq. 4.
- ``logistic5-pyiqa``: the same of x as it is, from 10, 0, mean y, 0.1, 0.1. pyiqa.
- ``none``: y = x. MINT-IQA, Q-Align, pyiqa's published benchmark.

``logistic4`` and ``logistic5`` are fitted to the standardised x, (x - mean) / standard deviation. The 4-parameter curve
is the same either way. The 5-parameter one is too, but from pyiqa's start (b2 = 0, b3 = mean **y**) and with raw scores
far from the ratings' scale it stays a straight line, with no sign of it in the result. So ``logistic5`` starts where
``logistic4`` does: max y - min y, 4, 0, 0, (max y + min y) / 2; and since its curves include those of ``logistic4``,
one that leaves a larger error than ``logistic4`` has not converged: it is ``failed``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import curve_fit
from scipy.special import expit

from critiq_evaluation.statistics.arrays import Floats, is_constant, paired, why_undefined

FitName = Literal["logistic4", "logistic4-sjtu", "logistic5", "logistic5-pyiqa", "none"]

_MAX_EVALUATIONS = 20_000
_WORSE = 1.001
"""How much larger than logistic4's the error of a 5-parameter curve may be, for rounding and early stopping."""


def _vqeg4(x: Floats, b1: float, b2: float, b3: float, b4: float) -> Floats:
    return np.asarray((b1 - b2) * expit((x - b3) / b4) + b2)


def _sjtu4(x: Floats, b1: float, b2: float, b3: float, b4: float) -> Floats:
    return _vqeg4(x, b1, b2, b3, abs(b4))


def _vqeg5(x: Floats, b1: float, b2: float, b3: float, b4: float, b5: float) -> Floats:
    # 0.5 - 1/(1+exp(t)) is expit(t) - 0.5, which does not overflow.
    return np.asarray(b1 * (expit(b2 * (x - b3)) - 0.5) + b4 * x + b5)


@dataclass(frozen=True)
class _Form:
    curve: Callable[..., Floats]
    start: Callable[[Floats, Floats], list[float]]
    standardised: bool = False


_FORMS: dict[str, _Form] = {
    "logistic4": _Form(_vqeg4, lambda x, y: [y.max(), y.min(), 0.0, 0.25], standardised=True),
    "logistic4-sjtu": _Form(_sjtu4, lambda x, y: [y.max(), y.min(), x.mean(), 0.5]),
    "logistic5": _Form(_vqeg5, lambda x, y: [np.ptp(y), 4.0, 0.0, 0.0, (y.max() + y.min()) / 2], standardised=True),
    "logistic5-pyiqa": _Form(_vqeg5, lambda x, y: [10.0, 0.0, y.mean(), 0.1, 0.1]),
}

FITS: tuple[FitName, ...] = ("logistic4", "logistic4-sjtu", "logistic5", "logistic5-pyiqa", "none")


@dataclass(frozen=True)
class Fit:
    """A curve from scores to ratings, or why there is none.

    Attributes:
        name: which curve; see the table in :mod:`critiq_evaluation.statistics.fits`.
        state: ``failed`` where the curve must not be used; ``reason`` then says why.
        parameters: b1, b2, ... of the curve over ``(x - shift) / scale``; empty for ``none`` and where it failed.
        note: what a reader of the result should know: a curve that falls, or that rises and falls.
    """

    name: FitName
    state: Literal["ok", "failed"]
    reason: str = ""
    parameters: tuple[float, ...] = ()
    shift: float = 0.0
    scale: float = 1.0
    note: str = ""

    def __call__(self, scores: ArrayLike) -> Floats:
        """The ratings that the curve gives, in the shape of ``scores``.

        Raises:
            ValueError: the fit failed.
        """
        if self.state == "failed":
            raise ValueError(f"the fit {self.name} failed: {self.reason}")
        x = np.asarray(scores, np.float64)
        if self.name == "none":
            return x
        return _FORMS[self.name].curve((x - self.shift) / self.scale, *self.parameters)


def fit_curve(scores: ArrayLike, ratings: ArrayLike, name: FitName = "logistic4") -> Fit:
    """Fits a curve by least squares (Levenberg-Marquardt, as SciPy has it).

    Args:
        scores: ``[count]``, on any scale.
        ratings: ``[count]``, on the scale that the curve shall give.

    Returns:
        A fit whose ``state`` is ``failed`` for constant or non-finite values, for fewer pictures than parameters plus
        one, where the search does not converge, where the curve is constant, and where a 5-parameter curve has stopped
        at a larger error than the 4-parameter one.
    """
    if name not in FITS:
        raise ValueError(f"no fit is called {name!r}; known are {', '.join(FITS)}")
    x, y = paired(scores, ratings)
    reason = why_undefined(x, y)
    if reason:
        return Fit(name, "failed", reason)
    if name == "none":
        return Fit(name, "ok")
    fit = _search(x, y, name)
    if fit.state == "ok" and name.startswith("logistic5"):
        return _checked(fit, x, y)
    return fit


def _search(x: Floats, y: Floats, name: FitName) -> Fit:
    form = _FORMS[name]
    shift, scale = (float(x.mean()), float(x.std())) if form.standardised else (0.0, 1.0)
    start = form.start(x, y)
    if x.size <= len(start):
        return Fit(name, "failed", f"{x.size} pictures; {len(start)} parameters need {len(start) + 1} or more")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")  # that the covariance is unknown, which nobody asks for
            found: Any = curve_fit(form.curve, (x - shift) / scale, y, p0=start, maxfev=_MAX_EVALUATIONS)[0]
    except RuntimeError:
        return Fit(name, "failed", f"the search did not converge within {_MAX_EVALUATIONS} evaluations")
    fit = Fit(name, "ok", "", tuple(float(value) for value in found), shift, scale)
    with np.errstate(all="ignore"):
        fitted = fit(np.sort(x))
    if not np.isfinite(fitted).all():
        return Fit(name, "failed", f"the search ended in parameters that give no finite values: {fit.parameters}")
    if is_constant(fitted):
        return Fit(name, "failed", f"the curve is constant at {fitted[0]:g}: it says nothing of the ratings")
    return Fit(name, "ok", "", fit.parameters, shift, scale, _note(fitted))


def _note(fitted: Floats) -> str:
    """``fitted`` are the curve's values in the order of the scores."""
    steps = np.diff(fitted)
    slack = 1e-9 * np.ptp(fitted)
    rises, falls = bool((steps > slack).any()), bool((steps < -slack).any())
    if rises and falls:
        return "the curve rises and falls, so its PLCC is not that of a scale: prefer logistic4"
    if falls:
        return "the curve falls: higher scores go with lower ratings, and the fit hides it"
    return ""


def _checked(fit: Fit, x: Floats, y: Floats) -> Fit:
    four = _search(x, y, "logistic4")
    if four.state == "failed":
        return fit
    error, error_of_four = (float(np.sqrt(np.mean((curve(x) - y) ** 2))) for curve in (fit, four))
    if error <= _WORSE * error_of_four:
        return fit
    line = np.polyval(np.polyfit(x, y, 1), x)
    what = "is a straight line" if np.abs(fit(x) - line).max() < 1e-3 * np.ptp(y) else "has not converged"
    reason = f"the curve {what}: RMSE {error:.4g}, where logistic4, which it includes, leaves {error_of_four:.4g}"
    return Fit(fit.name, "failed", f"{reason}; use logistic4 or logistic5")
