"""How far a window lies from what it is held against, and how surely.

Distributions: population stability index, Kolmogorov-Smirnov statistic, Wasserstein distance. Vectors: shift of the
mean. What is surely more than chance is judged by one bound a look, which holds for every distribution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from critiq_server.bundles.manifest import Reference
from critiq_server.scoring.drift_windows import Moments, Sketch

BASELINE_RISK = 0.001
"""Chance, taken once for each baseline, that it lies further from the truth than what is deducted for it."""
BINS = 10
_SHARES = (np.arange(200) + 0.5) / 200
_DECILES = np.arange(BINS + 1) / BINS


@dataclass(frozen=True, slots=True)
class Comparison:
    """A window held against something.

    ``size``: of distributions the Kolmogorov-Smirnov statistic, 0 (the same) .. 1; of vectors how many standard
    deviations the mean moved, root mean square over the coordinates, less what chance alone would make of it.
    ``p_value``: bound of the probability of at least such a difference, had nothing changed. ``margin``: what was
    deducted from ``size`` before, for the errors of sketches and of what is compared with. ``psi`` in nats, and what
    chance alone would make of it; ``wasserstein`` in interquartile ranges of what is compared with. The last three are
    ``None`` for vectors, ``wasserstein`` also where half of the values are one and the same.
    """

    size: float
    p_value: float
    margin: float
    psi: float | None = None
    psi_by_chance: float | None = None
    wasserstein: float | None = None


class Yardstick:
    """A distribution that does not change: shares at some points, known to within bounds, and quantiles."""

    def __init__(
        self,
        count: int,
        points: NDArray[np.float32],
        bounds: NDArray[np.float64],
        quantiles: NDArray[np.float64],
        deciles: NDArray[np.float64],
        rank_error: float,
    ) -> None:
        """``bounds`` [4, points]: the least and largest share at or below each point, then of those below it."""
        self.count = count
        self.rank_error = rank_error
        # Dvoretzky, Kiefer, Wolfowitz with Massart's constant: how far a sample lies from its population.
        self.sampling_error = math.sqrt(math.log(2 / BASELINE_RISK) / (2 * count))
        self.quantiles = quantiles
        self.points = points
        self._bounds = bounds
        low, high = np.interp([0.25, 0.75], _SHARES, quantiles)
        self.quartile_range = float(high - low)
        self.edges = _edges(deciles)
        self.shares = self.cdf_shares(self.edges)

    @classmethod
    def of_reference(cls, reference: Reference) -> Yardstick:
        """Of evenly spaced quantiles: exact where they differ, and at those that repeat right to one step of them."""
        values = np.asarray(reference.quantiles, np.float32)
        step = 1 / (len(values) - 1)
        points, first = np.unique(values, return_index=True)
        last = np.append(first[1:], len(values)) - 1
        single = first == last
        bounds = np.clip(
            [
                last * step,
                np.where(single, last, last + 1) * step,
                np.where(single, first, first - 1) * step,
                first * step,
            ],
            0,
            1,
        )
        grid = np.linspace(0, 1, len(values))
        return cls(
            reference.count,
            points,
            bounds,
            np.interp(_SHARES, grid, values),
            np.interp(_DECILES, grid, values),
            0.0,
        )

    @classmethod
    def of_sketch(cls, sketch: Sketch) -> Yardstick:
        """Of what was seen; there must be a value."""
        points = np.unique(sketch.quantiles(np.linspace(0, 1, 201)).astype(np.float32))
        at, below = sketch.cdf(points, inclusive=True), sketch.cdf(points, inclusive=False)
        return cls(
            sketch.count,
            points,
            np.stack([at, at, below, below]),
            sketch.quantiles(_SHARES),
            sketch.quantiles(_DECILES),
            sketch.rank_error,
        )

    def cdf(self, edges: NDArray[np.float32]) -> NDArray[np.float64]:
        """Share at or below each edge, linear between the points."""
        middle = self._bounds[:2].mean(axis=0)
        below = self._bounds[2:].mean(axis=0)
        positions = np.stack([np.nextafter(self.points, np.float32(-np.inf)), self.points]).T.ravel()
        shares = np.stack([below, middle]).T.ravel()
        return np.interp(edges, positions, np.maximum.accumulate(shares), left=0.0, right=1.0)

    def cdf_shares(self, edges: NDArray[np.float32]) -> NDArray[np.float64]:
        """Shares of the bins that ``edges`` cut, the first and the last without an end."""
        return np.diff(np.concatenate([[0.0], self.cdf(edges), [1.0]]))

    def shares_of(self, window: Sketch) -> NDArray[np.float64]:
        """Shares [2, points] of the window's values at or below, and below, each point."""
        return np.stack([window.cdf(self.points, inclusive=True), window.cdf(self.points, inclusive=False)])

    def distance(self, shares: NDArray[np.float64]) -> float:
        """Kolmogorov-Smirnov statistic at the points, from below and from above: where the shares are known."""
        at, below = shares
        low_at, high_at, low_below, high_below = self._bounds
        beyond = np.maximum(np.maximum(low_at - at, at - high_at), np.maximum(low_below - below, below - high_below))
        return max(0.0, float(beyond.max()))


def significance(
    shares: NDArray[np.float64], count: int, rank_error: float, yardstick: Yardstick, alike: float
) -> Comparison:
    """Whether ``count`` values with these shares (:meth:`Yardstick.shares_of`) differ from ``yardstick``.

    The p-value is the bound of Dvoretzky, Kiefer and Wolfowitz, ``2 exp(-2 n e**2)``, of what remains of the statistic
    after the margin. ``alike`` values count as one. PSI and Wasserstein are left out.
    """
    size = yardstick.distance(shares)
    margin = rank_error + yardstick.rank_error + math.sqrt(alike) * yardstick.sampling_error
    excess = max(0.0, size - margin)
    return Comparison(size, min(1.0, 2 * math.exp(-2 * count / alike * excess**2)), margin)


def compare_distributions(window: Sketch, yardstick: Yardstick, alike: float = 1.0) -> Comparison:
    """Holds ``window`` (with at least one value) against ``yardstick``; see :func:`significance`.

    PSI: bins between the deciles of the yardstick; half a value is added to each bin of both sides, so that no bin is
    empty. Wasserstein: mean distance of 200 quantiles.
    """
    shares = np.diff(np.concatenate([[0.0], window.cdf(yardstick.edges, inclusive=True), [1.0]]))
    p, q = _smoothed(shares, window.count), _smoothed(yardstick.shares, yardstick.count)
    moved = float(np.abs(window.quantiles(_SHARES) - yardstick.quantiles).mean())
    return replace(
        significance(yardstick.shares_of(window), window.count, window.rank_error, yardstick, alike),
        psi=float(((p - q) * np.log(p / q)).sum()),
        psi_by_chance=alike * (len(p) - 1) * (1 / window.count + 1 / yardstick.count),
        wasserstein=moved / yardstick.quartile_range if yardstick.quartile_range > 0 else None,
    )


def compare_moments(window: Moments, baseline: Moments, alike: float = 1.0) -> Comparison:
    """Holds the mean of ``window`` against that of ``baseline``, each with at least one vector; ``alike`` as above.

    The p-value is that of the coordinate that moved most, by the normal distribution, times the number of coordinates:
    it holds however they depend on one another, but leans on means of many values being normal.
    """
    spread = baseline.spread
    moving = spread > 1e-6 * max(float(spread.max(initial=0.0)), 1e-12)
    shift = np.abs(window.mean - baseline.mean)[moving] / spread[moving]
    if not len(shift):
        return Comparison(0.0, 1.0, 0.0)
    by_chance = alike * (1 / window.count + 1 / baseline.count)
    z = float(shift.max()) / math.sqrt(by_chance)
    return Comparison(
        size=math.sqrt(max(0.0, float((shift**2).mean()) - by_chance)),
        p_value=min(1.0, len(shift) * math.erfc(z / math.sqrt(2))),
        margin=0.0,
    )


def _edges(deciles: NDArray[np.float64]) -> NDArray[np.float32]:
    """Where bins end: the inner deciles; around a value that several deciles share, a bin for that value alone."""
    values = deciles.astype(np.float32)
    points, counts = np.unique(values, return_counts=True)
    inner = points[(points > values[0]) & (points < values[-1])]
    tied = points[counts > 1]
    edges: NDArray[np.float32] = np.unique(np.concatenate([inner, tied, np.nextafter(tied, np.float32(-np.inf))]))
    return edges if len(edges) else values[:1]


def _smoothed(shares: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return (shares * count + 0.5) / (count + 0.5 * len(shares))
