"""From a model's raw value to a score that means something."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from critiq.errors import Internal
from critiq.types import Score
from critiq_server.bundles.manifest import Dimension

CALIBRATED_DECIMALS = 4
"""Calibrated values and percentiles are rounded to this many decimals (percentiles to two fewer), so that float noise
within the tolerance does not show in decisions."""


class Judgement:
    """Makes scores of one dimension of one model version."""

    def __init__(self, dimension: Dimension, model: str, version: str) -> None:
        self.dimension = dimension
        self._model = model
        self._version = version
        calibration, reference = dimension.calibration, dimension.reference
        self._raw = np.asarray(calibration.raw) if calibration else None
        self._calibrated = np.asarray(calibration.calibrated) if calibration else None
        self._quantiles = np.asarray(reference.quantiles) if reference else None

    def score(self, raw: float, *, from_store: bool) -> Score:
        """The score of a raw value; raises ``Internal`` if it is not a finite number."""
        if not math.isfinite(raw):
            raise Internal(f"the model gave {raw} for {self.dimension.name!r}; the picture was not scored")
        return Score(
            dimension=self.dimension.name,
            raw=raw,
            calibrated=self._calibrate(raw),
            percentile=self._percentile(raw),
            direction=self.dimension.direction,
            scope=self.dimension.scope,
            model=self._model,
            model_version=self._version,
            from_store=from_store,
        )

    def degraded(self, raw: float, reason: str, *, from_store: bool) -> Score:
        """The score of the fallback head's raw value. Raises ``Internal`` if it is not a finite number."""
        fallback = self.dimension.fallback
        if fallback is None:
            raise Internal(f"the dimension {self.dimension.name!r} has no fallback")
        calibration = fallback.calibration
        score = self.score(raw, from_store=from_store)
        return replace(
            score,
            calibrated=_interpolated(raw, calibration.raw, calibration.calibrated) if calibration else None,
            percentile=None,
            degraded=True,
            degraded_reason=reason,
        )

    def goodness(self, raw: float) -> float:
        """``raw`` with the sign that makes larger better."""
        return raw if self.dimension.direction == "higher_is_better" else -raw

    def _calibrate(self, raw: float) -> float | None:
        if self._raw is None or self._calibrated is None:
            return None
        return _interpolated(raw, self._raw, self._calibrated)

    def _percentile(self, raw: float) -> float | None:
        """Position among the reference quantiles, linear between them; 100 is best whatever the direction."""
        if self._quantiles is None:
            return None
        quantiles = self._quantiles
        above = int(np.searchsorted(quantiles, raw, side="right"))
        if above == 0:
            share = 0.0
        elif above == len(quantiles):
            share = 1.0
        else:
            below, upper = quantiles[above - 1], quantiles[above]
            share = (above - 1 + (raw - below) / (upper - below)) / (len(quantiles) - 1)
        if self.dimension.direction == "lower_is_better":
            share = 1 - share
        return round(100 * float(share), CALIBRATED_DECIMALS - 2)


_Points = Sequence[float] | NDArray[np.float64]


def _interpolated(raw: float, points: _Points, calibrated: _Points) -> float:
    return round(float(np.interp(raw, points, calibrated)), CALIBRATED_DECIMALS)
