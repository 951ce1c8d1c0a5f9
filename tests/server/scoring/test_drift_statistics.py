from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from critiq_server.bundles.manifest import Reference
from critiq_server.scoring.drift_statistics import (
    BASELINE_RISK,
    Comparison,
    Yardstick,
    compare_distributions,
    compare_moments,
    significance,
)
from critiq_server.scoring.drift_windows import BASELINE_K, Moments, Sketch

VALUES = st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=150)


def sketch_of(values: object, k: int = 1024) -> Sketch:
    sketch = Sketch(k)
    sketch.update(np.asarray(values, np.float32))
    return sketch


def hold(window: Sketch, yardstick: Yardstick, alike: float = 1.0) -> Comparison:
    return significance(yardstick.shares_of(window), window.count, window.rank_error, yardstick, alike)


def distance(window: Sketch, yardstick: Yardstick) -> float:
    return yardstick.distance(yardstick.shares_of(window))


def ramp(count: int = 1000, steps: int = 101) -> Reference:
    return Reference(population="a ramp", count=count, quantiles=np.linspace(0, 1, steps).tolist())


@given(VALUES, VALUES)
def test_the_statistic_is_scipys_whatever_the_ties(window: list[float], baseline: list[float]) -> None:
    found = distance(sketch_of(window), Yardstick.of_sketch(sketch_of(baseline)))
    assert found == pytest.approx(stats.ks_2samp(window, baseline, method="asymp").statistic, abs=1e-6)


def test_the_p_value_is_the_bound_of_dvoretzky_kiefer_and_wolfowitz() -> None:
    rng = np.random.default_rng(0)
    window, baseline = rng.normal(0.5, 1, 800), rng.normal(size=1000)
    found = compare_distributions(sketch_of(window), Yardstick.of_sketch(sketch_of(baseline, BASELINE_K)))
    margin = math.sqrt(math.log(2 / BASELINE_RISK) / 2000)
    assert found.margin == pytest.approx(margin)  # both sketches are exact
    assert found.p_value == pytest.approx(2 * math.exp(-2 * 800 * (found.size - margin) ** 2))
    assert found.wasserstein == pytest.approx(
        stats.wasserstein_distance(window, baseline) / stats.iqr(baseline), rel=0.02
    )


def test_values_that_count_as_one_make_it_less_sure() -> None:
    rng = np.random.default_rng(0)
    window, yardstick = sketch_of(rng.normal(0.3, 1, 900)), Yardstick.of_sketch(sketch_of(rng.normal(size=1000)))
    sure, less = hold(window, yardstick), hold(window, yardstick, 2.5)
    assert less.size == sure.size
    assert less.p_value > sure.p_value
    assert less.margin == pytest.approx(sure.margin * math.sqrt(2.5))


def test_the_stability_index_is_the_formula_with_half_a_value_more_in_each_bin() -> None:
    yardstick = Yardstick.of_reference(ramp())
    values = np.random.default_rng(5).beta(2, 1, 500)
    counts = np.histogram(values, np.linspace(0, 1, 11))[0]
    p, q = (counts + 0.5) / 505, (100 + 0.5) / 1005
    found = compare_distributions(sketch_of(values), yardstick)
    assert found.psi == pytest.approx(((p - q) * np.log(p / q)).sum(), rel=1e-6)
    assert found.psi_by_chance == pytest.approx(9 * (1 / 500 + 1 / 1000))


@pytest.mark.parametrize("side", [-1, 1])
def test_values_beside_a_constant_are_seen_on_either_side(side: int) -> None:
    yardstick = Yardstick.of_sketch(sketch_of([7.0] * 500))
    found = compare_distributions(sketch_of([7.0] * 50 + [7.0 + side] * 50), yardstick)
    assert found.size == pytest.approx(0.5)
    assert found.psi is not None
    assert found.psi > 1
    assert found.wasserstein is None


def test_a_reference_is_known_only_at_its_quantiles() -> None:
    """Half of a reference may be one value, repeated: a sample of it is no different."""
    quantiles = [0.0] * 51 + np.linspace(0.02, 1, 50).tolist()
    yardstick = Yardstick.of_reference(Reference(population="half zeros", count=10_000, quantiles=quantiles))
    rng = np.random.default_rng(2)
    values = np.where(rng.random(20_000) < 0.5, 0.0, rng.random(20_000))
    assert distance(sketch_of(values), yardstick) < 0.015
    assert distance(sketch_of(rng.random(20_000)), yardstick) > 0.45


def test_no_alarm_in_a_thousand_looks_at_what_did_not_change() -> None:
    rng = np.random.default_rng(9)
    yardstick = Yardstick.of_sketch(sketch_of(rng.gamma(2, 1, 5000), BASELINE_K))
    found = [hold(sketch_of(rng.gamma(2, 1, 500)), yardstick).p_value for _ in range(1000)]
    assert np.mean(np.array(found) < 0.01) < 0.01  # the bound holds
    assert min(found) > 1e-6


def test_a_moved_mean_of_vectors_is_found_and_measured() -> None:
    rng = np.random.default_rng(4)
    baseline, still, moved = Moments(64), Moments(64), Moments(64)
    baseline.update(rng.normal(5, 3, (4000, 64)))
    still.update(rng.normal(5, 3, (1000, 64)))
    shifted = rng.normal(5, 3, (1000, 64))
    shifted[:, :16] += 1.5  # half a standard deviation in a quarter of the coordinates
    moved.update(shifted)
    assert compare_moments(still, baseline).p_value > 1e-4
    assert compare_moments(still, baseline).size < 0.02
    found = compare_moments(moved, baseline)
    assert found.p_value < 1e-20
    assert found.size == pytest.approx(0.25, abs=0.03)
    assert found.psi is None


def test_vectors_that_never_vary_say_nothing() -> None:
    constant = Moments(3)
    constant.update(np.ones((10, 3)))
    assert compare_moments(constant, constant).p_value == 1.0
