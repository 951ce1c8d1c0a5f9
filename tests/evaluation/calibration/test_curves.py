"""Maps rise, fit what they should, and fail with a reason."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq_evaluation.calibration.curves import METHODS, SAMPLING_GOAL, Method, fit_map
from critiq_evaluation.statistics import fit_curve

every_method = pytest.mark.parametrize("method", METHODS)


def sigmoid_scores(count: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Scores like cosines and ratings of 1 to 5 that follow them in an S."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(0.15, 0.4, count)
    return x, np.clip(1 + 4 / (1 + np.exp(-(x - 0.27) / 0.03)) + rng.normal(0, noise, count), 1, 5)


@every_method
@given(seed=st.integers(0, 1000), noise=st.floats(0.05, 3))
@settings(max_examples=15, deadline=None)
def test_what_has_the_larger_score_never_gets_the_lower_rating(method: Method, seed: int, noise: float) -> None:
    x, y = sigmoid_scores(60, noise, seed)
    found = fit_map(x, y, method, (1, 5))
    if found.state == "failed":
        assert found.reason
        return
    assert (np.diff(found.scores) > 0).all()
    assert (np.diff(found.ratings) >= 0).all()
    said = found(np.linspace(-1, 2, 1000))
    assert (np.diff(said) >= 0).all()
    assert said.min() >= 1
    assert said.max() <= 5


@every_method
def test_a_map_finds_the_relation(method: Method) -> None:
    x, y = sigmoid_scores(400, 0.1)
    found = fit_map(x, y, method, (1, 5))
    left = np.sqrt(np.mean((found(x) - y) ** 2))
    assert left < (0.45 if method == "linear" else 0.12)
    assert found.sampling_error <= SAMPLING_GOAL * 4


def test_the_points_are_the_curve() -> None:
    x, y = sigmoid_scores(200, 0.2)
    at = np.linspace(x.min(), x.max(), 5001)
    found = fit_map(x, y, "logistic4", (1, 5))
    assert np.abs(found(at) - np.clip(fit_curve(x, y, "logistic4")(at), 1, 5)).max() <= found.sampling_error + 1e-5


def test_isotonic_is_the_mean_of_each_step_at_its_centre() -> None:
    found = fit_map([1, 2, 3, 4, 5, 5], [1, 3, 2, 4, 4, 6], "isotonic", (0, 10))
    # 3 and 2 are pooled at 2.5; the two pictures of score 5 count as one of rating 5.
    assert found.scores == (1, 2.5, 4, 5)
    assert found.ratings == (1, 2.5, 4, 5)


def test_isotonic_does_not_depend_on_the_order_of_the_pictures() -> None:
    x, y = sigmoid_scores(100, 1)
    x = x.round(2)  # many ties
    order = np.random.default_rng(1).permutation(100)
    first, second = fit_map(x, y, "isotonic", (1, 5)), fit_map(x[order], y[order], "isotonic", (1, 5))
    np.testing.assert_allclose(first.ratings, second.ratings, atol=1e-12)


@every_method
def test_beyond_the_labelled_scores_a_map_is_constant(method: Method) -> None:
    x, y = sigmoid_scores(100, 0.2)
    found = fit_map(x, y, method, (1, 5))
    assert found(-100.0) == found.ratings[0]
    assert found(100.0) == found.ratings[-1]


@every_method
@pytest.mark.parametrize(
    ("x", "y", "reason"),
    [
        ([1.0] * 20, list(range(20)), "all 20 scores are 1"),
        (list(range(20)), [3.0] * 20, "all 20 ratings are 3"),
        ([*range(19), float("nan")], list(range(20)), "1 of 20 scores are not finite"),
        ([1.0, 2.0], [1.0, 2.0], "2 pictures"),
        (list(range(20)), list(range(20, 0, -1)), "higher scores do not go with higher ratings"),
    ],
    ids=["constant scores", "constant ratings", "nan", "two", "falling"],
)
def test_what_has_no_map_fails_with_the_reason(method: Method, x: list[float], y: list[float], reason: str) -> None:
    found = fit_map(x, y, method, (0, 100))
    assert found.state == "failed"
    assert reason in found.reason
    with pytest.raises(ValueError, match="failed"):
        found(1.0)


def test_a_curve_that_rises_and_falls_is_refused() -> None:
    x = np.linspace(0, 10, 200)
    y = np.where(x < 7, x, 7 - 0.5 * (x - 7))
    found = fit_map(x, y, "logistic5", (0, 10))
    assert found.state == "failed"
    assert "rises and falls" in found.reason
