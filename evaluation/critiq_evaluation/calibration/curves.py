"""Monotone maps from raw scores to ratings, and the points by which a bundle carries them.

- ``linear``: least squares.
- ``logistic4``, ``logistic5``: VQEG's curves (:mod:`critiq_evaluation.statistics.fits`).
- ``isotonic``: the non-decreasing step function of least squares (pool adjacent violators: Barlow et al. 1972), linear
  between the centres of its steps (centred isotonic regression: Oron and Flournoy 2017), so that it rises within a step
  too and ties only what lies outside the first and the last centre.

Each rises: what has the larger score never gets the lower rating. Beyond the labelled scores a map is constant, as
nobody has said what is true there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from critiq_evaluation.statistics import fit_curve
from critiq_evaluation.statistics.arrays import Floats, paired, why_undefined

Method = Literal["linear", "logistic4", "logistic5", "isotonic"]
METHODS: tuple[Method, ...] = ("linear", "logistic4", "logistic5", "isotonic")
"""From the simplest to the most flexible."""

_FIRST_SEGMENTS, _MOST_SEGMENTS = 128, 2048
SAMPLING_GOAL = 5e-5
"""Of the calibrated scale 0..1: half of the last decimal that the server keeps."""


@dataclass(frozen=True)
class Map:
    """A monotone map, or why there is none.

    Attributes:
        state: ``failed`` where it must not be used; ``reason`` then says why.
        scores, ratings: the points, linear between them and constant outside; ``scores`` increase strictly, ``ratings``
            never decrease. Empty where the fit failed.
        parameters: of the curve that the points were taken from; empty for ``isotonic``.
        sampling_error: the largest difference between that curve and the points, in the ratings' unit.
    """

    method: Method
    state: Literal["ok", "failed"]
    reason: str = ""
    scores: tuple[float, ...] = ()
    ratings: tuple[float, ...] = ()
    parameters: tuple[float, ...] = ()
    sampling_error: float = 0.0

    def __call__(self, scores: ArrayLike) -> Floats:
        """The ratings that the map gives. Raises ``ValueError`` where the fit failed."""
        if self.state == "failed":
            raise ValueError(f"the fit {self.method} failed: {self.reason}")
        return np.asarray(np.interp(np.asarray(scores, np.float64), self.scores, self.ratings))


def fit_map(scores: ArrayLike, ratings: ArrayLike, method: Method, bounds: tuple[float, float]) -> Map:
    """The map of least squares.

    Args:
        scores: ``[count]``, higher is better.
        ratings: ``[count]``, higher is better.
        bounds: the smallest and the largest rating that there can be; the map stays within.

    Returns:
        A map whose ``state`` is ``failed`` for values that are constant or not finite, fewer than three pictures or
        than the curve has parameters and one, a search that does not converge, and a curve that falls.
    """
    x, y = paired(scores, ratings)
    reason = why_undefined(x, y)
    if reason:
        return Map(method, "failed", reason)
    if method == "isotonic":
        return _isotonic(x, y, bounds)
    if method == "linear":
        slope, intercept = (float(value) for value in np.polyfit(x, y, 1))
        return _sampled("linear", lambda at: slope * at + intercept, (slope, intercept), x, bounds)
    fit = fit_curve(x, y, method)
    if fit.state == "failed":
        return Map(method, "failed", fit.reason)
    return _sampled(method, fit, fit.parameters, x, bounds)


def _isotonic(x: Floats, y: Floats, bounds: tuple[float, float]) -> Map:
    """Pictures of one score count as one of their mean rating, or the result would depend on their order."""
    at, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=y) / counts
    found = isotonic_regression(means, weights=counts)
    starts = np.asarray(found.blocks)[:-1]
    if len(starts) < 2:
        return Map("isotonic", "failed", _falls("the ratings do not rise with the scores at all"))
    centres = np.add.reduceat(at * counts, starts) / np.add.reduceat(counts, starts)
    values = np.clip(np.asarray(found.x)[starts], *bounds)
    return Map("isotonic", "ok", "", tuple(centres.tolist()), tuple(values.tolist()))


def _sampled(
    method: Method,
    curve: Callable[[Floats], Floats],
    parameters: tuple[float, ...],
    x: Floats,
    bounds: tuple[float, float],
) -> Map:
    low, high = float(x.min()), float(x.max())

    def clipped(at: Floats) -> Floats:
        return np.asarray(np.clip(curve(at), *bounds))

    fine = np.linspace(low, high, 4 * _MOST_SEGMENTS + 1)
    true = clipped(fine)
    span = bounds[1] - bounds[0]
    steps = np.diff(true)
    if np.ptp(true) < 1e-6 * span or true[-1] <= true[0]:
        return Map(method, "failed", _falls(f"the curve goes from {true[0]:.4g} to {true[-1]:.4g}"))
    if steps.min() < -1e-9 * span:
        worst = float(fine[int(np.argmin(steps))])
        return Map(method, "failed", f"the curve rises and falls (near the score {worst:.4g}); use another method")
    segments = 1 if method == "linear" else _FIRST_SEGMENTS
    while True:
        at, values = _clipped_points(curve, np.linspace(low, high, segments + 1), bounds)
        error = float(np.abs(np.interp(fine, at, values) - true).max())
        if error <= SAMPLING_GOAL * span or segments >= _MOST_SEGMENTS:
            break
        segments *= 2
    values = np.maximum.accumulate(values)  # rounding may leave the last bit falling
    return Map(method, "ok", "", tuple(at.tolist()), tuple(values.tolist()), parameters, error)


def _clipped_points(
    curve: Callable[[Floats], Floats], at: Floats, bounds: tuple[float, float]
) -> tuple[Floats, Floats]:
    """Points of the curve within the bounds, with one more where it crosses a bound: there it has a corner."""
    values = curve(at)
    crossings = []
    for bound in bounds:
        left = np.flatnonzero((values[:-1] - bound) * (values[1:] - bound) < 0)
        share = (bound - values[left]) / (values[left + 1] - values[left])
        crossings.append(at[left] + share * (at[left + 1] - at[left]))
    every = np.unique(np.concatenate([at, *crossings]))
    return every, np.clip(np.interp(every, at, values), *bounds)


def _falls(what: str) -> str:
    return f"{what}: higher scores do not go with higher ratings; is the dimension, the direction or the file wrong?"
