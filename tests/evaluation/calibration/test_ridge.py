"""The linear head: the closed form, what it finds, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

from critiq_evaluation.calibration.ridge import _path, fit_ridge, weak_supervision
from critiq_evaluation.errors import EvaluationError


def made(count: int, width: int, noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features of which three matter, on scales far apart."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, width)) * 10.0 ** rng.uniform(-2, 2, width) + 5
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    return features, 3 + standard[:, 0] - 0.5 * standard[:, 1] + 0.25 * standard[:, 2] + rng.normal(0, noise, count)


def test_the_closed_form_solves_the_normal_equations() -> None:
    features, ratings = made(40, 6, 0.3)
    head = _path(features, ratings, (7.0,))[0]
    standard = (features - features.mean(axis=0)) / features.std(axis=0)
    weights = np.linalg.solve(standard.T @ standard + 7 * np.eye(6), standard.T @ (ratings - ratings.mean()))
    np.testing.assert_allclose(head(features), ratings.mean() + standard @ weights, atol=1e-10)


def test_few_labels_of_many_features_are_enough_where_features_carry_the_rating() -> None:
    features, ratings = made(300, 64, 0.2)
    rng = np.random.default_rng(3)
    label_free = ratings + rng.normal(0, 2, ratings.size)
    trial = weak_supervision(features, ratings, label_free, share=0.4, repeats=8)
    assert (trial.labels, trial.tested) == (120, 180)
    assert trial.label_free is not None
    assert trial.head.srcc > 0.85 > trial.label_free.srcc
    assert 0 < trial.head.srcc_spread < 0.1


def test_features_that_say_nothing_are_found_out() -> None:
    rng = np.random.default_rng(0)
    trial = weak_supervision(rng.normal(size=(300, 20)), rng.normal(size=300), repeats=8)
    assert abs(trial.head.srcc) < 0.15


def test_a_feature_that_never_moves_gets_no_weight() -> None:
    features, ratings = made(100, 4, 0.1)
    features = np.column_stack([features, np.full(100, 7.0)])
    assert fit_ridge(features, ratings).weights[-1] == 0


@pytest.mark.parametrize(
    ("features", "ratings", "message"),
    [
        (np.eye(5), np.arange(5.0), "5 labelled pictures"),
        (np.full((20, 3), np.nan), np.arange(20.0), "not finite"),
        (np.ones((20, 3)), np.arange(20.0), "the same for every picture"),
        (np.eye(20), np.ones(20), "all 20 ratings are 1"),
    ],
)
def test_what_cannot_be_fitted(features: np.ndarray, ratings: np.ndarray, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        fit_ridge(features, ratings)


def test_too_small_a_share() -> None:
    features, ratings = made(40, 4, 0.1)
    with pytest.raises(EvaluationError, match="20 % of 40 labelled pictures are 8"):
        weak_supervision(features, ratings)
