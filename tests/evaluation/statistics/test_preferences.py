"""Accuracy over pairs and over rankings, counted by hand."""

from __future__ import annotations

import pytest

from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.statistics import pair_accuracy, ranking_accuracy


def test_pairs() -> None:
    found = pair_accuracy([3, 1, 2, 5], [1, 2, 2, 4])
    assert (found.pairs, found.ties) == (4, 1)
    assert found.accuracy == pytest.approx(2.5 / 4)
    assert found.strict == pytest.approx(2 / 4)
    assert found.low is not None
    assert found.high is not None
    assert 0 < found.low < 0.625 < found.high < 1


def test_constant_scores_are_chance() -> None:
    found = pair_accuracy([1] * 100, [1] * 100)
    assert found.accuracy == 0.5
    assert found.strict == 0
    assert found.ties == 100


def test_pairs_without_an_answer() -> None:
    assert pair_accuracy([], []).reason == "no pairs"
    missing = pair_accuracy([1, float("nan")], [0, 0])
    assert missing.accuracy is None
    assert "1 of 2 pairs" in missing.reason
    with pytest.raises(EvaluationError):
        pair_accuracy([1], [1, 2])


def test_rankings() -> None:
    scores = [1, 2, 3, 5, 4, 9, 7, 7]
    ratings = [1, 2, 3, 1, 2, 4, 5, 5]
    groups = ["a", "a", "a", "b", "b", "c", "d", "d"]
    found = ranking_accuracy(scores, ratings, groups)
    assert (found.groups, found.pairs) == (2, 4)  # c has one picture, d's ratings are the same
    assert found.accuracy == pytest.approx(3 / 4)
    assert found.top == pytest.approx(1 / 2)
    assert found.tau_b == pytest.approx(0.0)  # 1 and -1


def test_ties_at_the_top_count_by_share() -> None:
    found = ranking_accuracy([2, 2, 1], [5, 4, 3], ["a"] * 3)
    assert found.top == pytest.approx(0.5)
    assert found.accuracy == pytest.approx(2.5 / 3)
    assert found.strict == pytest.approx(2 / 3)


def test_rankings_without_an_answer() -> None:
    assert "no group has two" in ranking_accuracy([1, 2], [1, 2], ["a", "b"]).reason
    assert "not finite" in ranking_accuracy([1, float("inf")], [1, 2], ["a", "a"]).reason
    with pytest.raises(EvaluationError, match="1 groups for 2"):
        ranking_accuracy([1, 2], [1, 2], ["a"])
