"""The 0..1 map is monotone and means what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq_exporters.training.calibration import balanced_calibration, reference


def test_the_middle_is_where_the_populations_cross() -> None:
    rng = np.random.default_rng(0)
    good, bad = rng.normal(1, 1, 4000), rng.normal(-1, 1, 12000)
    calibration = balanced_calibration(good, bad)
    assert float(np.interp(0.0, calibration.raw, calibration.calibrated)) == pytest.approx(0.5, abs=0.03)
    assert calibration.calibrated[0] < 0.01
    assert calibration.calibrated[-1] == 1.0


@settings(deadline=None)
@given(st.lists(st.floats(-50, 50), min_size=10, max_size=60), st.lists(st.floats(-50, 50), min_size=10, max_size=60))
def test_any_scores_give_a_valid_monotone_map(good: list[float], bad: list[float]) -> None:
    calibration = balanced_calibration(np.array(good), np.array(bad))  # the manifest type checks the order
    assert all(a <= b for a, b in zip(calibration.calibrated, calibration.calibrated[1:], strict=False))


def test_too_few_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="ten"):
        balanced_calibration(np.zeros(3), np.zeros(100))


def test_quantiles_have_101_points_between_the_extremes() -> None:
    found = reference(np.arange(1000.0), "numbers")
    assert len(found.quantiles) == 101
    assert (found.quantiles[0], found.quantiles[50], found.quantiles[100]) == (0.0, 499.5, 999.0)
    assert found.count == 1000
