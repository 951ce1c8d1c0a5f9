"""Correlations against SciPy and the formulas as written, and results for what has no correlation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.statistics import measure

SCORES = np.array([0.12, 0.55, 0.31, 0.31, 0.98, 0.70, 0.44, 0.07, 0.83, 0.62])
RATINGS = np.array([1.5, 2.0, 3.1, 2.4, 4.4, 4.4, 2.9, 1.1, 3.9, 3.0])


def mean_ranks(values: np.ndarray) -> np.ndarray:
    return np.array([((values < value).sum() + (values <= value).sum() + 1) / 2 for value in values])


def pearson(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    return float((x @ y) / np.sqrt((x @ x) * (y @ y)))


def test_correlations_are_those_of_the_formulas() -> None:
    found = measure(SCORES, RATINGS)
    assert found.srcc == pytest.approx(pearson(mean_ranks(SCORES), mean_ranks(RATINGS)), abs=1e-9)
    assert found.plcc == pytest.approx(pearson(SCORES, RATINGS), abs=1e-9)

    signs = [
        (np.sign(SCORES[i] - SCORES[j]), np.sign(RATINGS[i] - RATINGS[j]))
        for i, j in itertools.combinations(range(len(SCORES)), 2)
    ]
    surplus = sum(a * b for a, b in signs)
    tau_b = surplus / np.sqrt(sum(a != 0 for a, _ in signs) * sum(b != 0 for _, b in signs))
    levels = min(len(set(SCORES)), len(set(RATINGS)))
    tau_c = 2 * surplus / (len(SCORES) ** 2 * (levels - 1) / levels)
    assert found.krcc == pytest.approx(tau_b, abs=1e-9)
    assert found.tau_c == pytest.approx(tau_c, abs=1e-9)


def test_correlations_are_those_of_scipy() -> None:
    generator = np.random.default_rng(3)
    x = generator.normal(size=500)
    y = np.round(x + generator.normal(size=500), 1)  # with ties
    found = measure(x, y)
    assert found.srcc == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    assert found.krcc == pytest.approx(stats.kendalltau(x, y).statistic, abs=1e-9)
    assert found.tau_c == pytest.approx(stats.kendalltau(x, y, variant="c").statistic, abs=1e-9)
    assert found.plcc == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    assert found.plcc_fitted == pytest.approx(stats.pearsonr(found.fit(x), y).statistic, abs=1e-9)
    assert found.rmse == pytest.approx(np.sqrt(np.mean((found.fit(x) - y) ** 2)), abs=1e-9)


def test_without_a_fit_there_is_no_error_on_the_ratings_scale() -> None:
    found = measure(SCORES, RATINGS, "none")
    assert found.plcc_fitted == found.plcc
    assert found.rmse is None


@pytest.mark.parametrize(
    ("scores", "ratings", "reason"),
    [
        ([0.5] * 40, list(range(40)), "all 40 scores are 0.5; a constant correlates with nothing"),
        ([0.1 + 0.2] * 20 + [0.3] * 20, list(range(40)), "all 40 scores are 0.3"),
        (list(range(40)), [3.0] * 40, "all 40 ratings are 3"),
        ([1.0, float("nan"), 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], "1 of 4 scores are not finite (the first at position 1"),
        ([1.0, 2.0, 3.0], [1.0, 2.0, float("inf")], "1 of 3 ratings are not finite"),
        ([1.0, 2.0], [1.0, 2.0], "2 pictures; a correlation needs 3 or more"),
        ([], [], "0 pictures"),
    ],
)
def test_what_has_no_correlation_says_why(scores: list[float], ratings: list[float], reason: str) -> None:
    found = measure(scores, ratings)
    assert reason in found.reason
    figures = (found.srcc, found.krcc, found.tau_c, found.plcc, found.plcc_fitted, found.rmse)
    assert figures == (None,) * 6
    assert found.fit.state == "failed"
    assert reason in found.fit.reason


def test_a_rating_too_few_is_refused() -> None:
    with pytest.raises(EvaluationError, match="3 scores and 2 ratings"):
        measure([1, 2, 3], [1, 2])


def test_what_limits_the_figures_is_noted() -> None:
    notes = " ".join(measure(SCORES, RATINGS).notes)
    assert "only 10 pictures" in notes
    assert "2 of 10 scores are tied" in notes
    falling = measure(-np.arange(50.0), np.arange(50.0) ** 2)
    assert falling.srcc == pytest.approx(-1)
    assert any("falls" in note for note in falling.notes)


pairs = st.lists(st.integers(-1000, 1000), min_size=3, max_size=60).flatmap(
    lambda values: st.tuples(st.just(values), st.permutations(values))
)


@settings(max_examples=60, deadline=None)
@given(pairs)
def test_rank_correlations_see_only_the_order(values: tuple[list[int], list[int]]) -> None:
    x, y = (np.array(row, np.float64) for row in values)
    plain, mapped = measure(x, y, "none"), measure(np.exp(x / 200), y**3, "none")
    if plain.srcc is None:
        assert "constant" in plain.reason
        assert mapped.srcc is None
        return
    assert mapped.srcc == pytest.approx(plain.srcc, abs=1e-9)
    assert mapped.krcc == pytest.approx(plain.krcc, abs=1e-9)
    assert measure(-x, y, "none").srcc == pytest.approx(-plain.srcc, abs=1e-9)
    assert measure(y, x, "none").srcc == pytest.approx(plain.srcc, abs=1e-9)
