"""From raw scores to numbers that mean something: a 0..1 map and the quantiles of a known population."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from critiq_server.bundles.manifest import Calibration, Reference

_POINTS = 33
_STEP = 1e-4

Scores = NDArray[np.floating]


def balanced_calibration(good: Scores, bad: Scores) -> Calibration:
    """The mean of a score's ranks among good and among bad pictures, on a grid between the extremes.

    0.5 is where as large a share of the good lies below as of the bad above; 0 is worse than all, 1 better than all.
    Raises ``ValueError`` where a population has fewer than ten scores.
    """
    if min(len(good), len(bad)) < 10:
        raise ValueError("calibration needs at least ten scores of each population")
    everything = np.concatenate([good, bad])
    grid = _increasing(np.quantile(everything, np.linspace(0, 1, _POINTS)))
    ranks = [0.5 * ((good <= raw).mean() + (bad <= raw).mean()) for raw in grid]
    return Calibration(
        raw=[round(float(raw), 5) for raw in grid],
        calibrated=[round(float(rank), 5) for rank in ranks],
        method="mean rank among good and bad held-out pictures, linear between points",
    )


def reference(scores: Scores, population: str) -> Reference:
    """101 quantiles of ``scores``."""
    quantiles = np.quantile(scores, np.linspace(0, 1, 101))
    return Reference(population=population, count=len(scores), quantiles=[round(float(q), 5) for q in quantiles])


def _increasing(values: Scores) -> Scores:
    """``values`` with later ones lifted just enough to increase strictly."""
    lifted = values.astype(np.float64).copy()
    for index in range(1, len(lifted)):
        lifted[index] = max(lifted[index], lifted[index - 1] + _STEP)
    return lifted
