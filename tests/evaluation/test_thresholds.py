"""Thresholds: the figures, the goals, what is refused, and what intervals are worth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.thresholds import Goal, curves, find_threshold, turned_back

PRECISION, RATE = Goal("precision", 0.9), Goal("pass_rate", 0.3)
COST = Goal("cost", false_accept=5.0, false_reject=1.0)


def labelled(count: int, seed: int = 0, sharpness: float = 8.0) -> tuple[np.ndarray, np.ndarray]:
    """Values in 0..1 and whether people accept: the likelier, the higher the value; half of them at 0.5."""
    rng = np.random.default_rng(seed)
    values = rng.uniform(0, 1, count).round(4)
    return values, rng.uniform(size=count) < 1 / (1 + np.exp(-sharpness * (values - 0.5)))


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=2, max_size=60))
@settings(max_examples=60, deadline=None)
def test_figures_are_those_of_counting(pairs: list[tuple[int, bool]]) -> None:
    values, accepted = np.array([p[0] / 10 for p in pairs]), np.array([p[1] for p in pairs])
    found = curves(values, accepted, COST)
    for at, threshold in enumerate(found.thresholds):
        passes = values >= threshold
        assert found.passing[at] == passes.sum() > 0
        assert found.pass_rate[at] == pytest.approx(passes.mean())
        assert found.precision[at] == pytest.approx(accepted[passes].mean())
        if accepted.any():
            assert found.recall[at] == pytest.approx((passes & accepted).sum() / accepted.sum())
        wrong = 5 * (passes & ~accepted).sum() + (~passes & accepted).sum()
        assert found.cost[at] == pytest.approx(wrong / len(values))
    assert len(found.thresholds) == len(set(values))


def test_thresholds_are_short_numbers_between_values() -> None:
    found = curves(np.array([0.1234, 0.1299, 0.5, 0.9]), np.array([False, True, True, True]), COST)
    assert found.thresholds.tolist() == [0.1234, 0.127, 0.3, 0.7]
    close = np.nextafter(0.5, 1)
    assert curves(np.array([0.5, close]), np.array([False, True]), COST).thresholds.tolist() == [0.5, close]


def test_precision_is_reached_with_the_most_recall() -> None:
    values, accepted = labelled(1000)
    found = find_threshold(values, accepted, PRECISION, resamples=50)
    assert found.precision >= 0.9
    every = curves(values, accepted, PRECISION)
    assert found.recall == max(every.recall[every.precision >= 0.9])
    assert found.precision == accepted[values >= found.value].mean()


def test_pass_rate_and_cost() -> None:
    values, accepted = labelled(1000)
    assert find_threshold(values, accepted, RATE, resamples=0).pass_rate == pytest.approx(0.3, abs=1e-3)
    found = find_threshold(values, accepted, COST, resamples=50)
    assert found.cost == min(curves(values, accepted, COST).cost)
    # False accepts at five times false rejects: pass where the chance of acceptance is above 5/6.
    assert found.value == pytest.approx(0.5 + np.log(5) / 8, abs=0.1)
    assert found.cost < min(found.cost_of_all, found.cost_of_none)


def test_intervals_hold_what_new_pictures_bring() -> None:
    held = 0
    for seed in range(40):
        values, accepted = labelled(200, seed)
        found = find_threshold(values, accepted, RATE, resamples=100, seed=seed)
        # Of all pictures there are, 30 % lie above 0.7.
        held += found.intervals["threshold"].low <= 0.7 <= found.intervals["threshold"].high
    assert held >= 34  # 38 are to be expected


def test_what_choosing_flatters_is_taken_off() -> None:
    new = labelled(200_000, seed=99)
    told, expected, true = [], [], []
    for seed in range(40):
        values, accepted = labelled(80, seed)
        found = find_threshold(values, accepted, PRECISION, resamples=100)
        told.append(found.precision)
        expected.append(found.expected["precision"])
        true.append(new[1][new[0] >= found.value].mean())
    assert np.mean(told) - np.mean(true) > 0.01  # the figure on the labels themselves is too good
    assert abs(np.mean(expected) - np.mean(true)) < abs(np.mean(told) - np.mean(true))


def test_lower_is_better() -> None:
    values, accepted = labelled(200)
    found, lines = turned_back(find_threshold(-values, ~accepted, RATE, resamples=50), curves(-values, ~accepted, RATE))
    assert (values <= found.value).mean() == pytest.approx(0.3, abs=0.01)
    assert found.intervals["threshold"].low <= found.value <= found.intervals["threshold"].high
    assert found.value in lines.thresholds


def test_ties_are_said() -> None:
    values = np.repeat([0.2, 0.8], 50)
    found = find_threshold(values, np.tile([True, False], 50), RATE, resamples=20)
    assert found.pass_rate == 0.5
    assert "ties allow no pass rate nearer to 0.3 than 0.5" in found.notes


def test_a_precision_that_hangs_on_few_pictures_is_said() -> None:
    values, accepted = labelled(60, sharpness=2.0)
    found = find_threshold(values, accepted, Goal("precision", 0.95), resamples=200)
    assert any("hangs on few pictures" in note or "is to be expected" in note for note in found.notes)
    assert found.intervals["precision"].low < 0.9


@pytest.mark.parametrize(
    ("values", "accepted", "goal", "message"),
    [
        (np.arange(5.0), np.ones(5, bool), RATE, "5 labelled pictures"),
        (np.ones(20), np.arange(20) > 9, RATE, "all 20 values are 1"),
        (np.full(20, np.nan), np.arange(20) > 9, RATE, "not finite"),
        (np.arange(20.0), np.ones(20, bool), PRECISION, "all 20 pictures are accepted; a threshold for precision"),
        (np.arange(20.0), np.zeros(20, bool), COST, "all 20 pictures are rejected; a threshold for cost"),
        (np.arange(20.0), np.arange(20) < 10, PRECISION, "no threshold reaches a precision of 0.9: the best is 0.5"),
        (np.arange(20.0), np.arange(20) < 10, COST, "it is cheapest to stop every picture"),
        (np.arange(20.0), np.arange(20) < 15, Goal("cost", false_reject=5), "it is cheapest to pass every picture"),
    ],
)
def test_what_has_no_threshold(values: np.ndarray, accepted: np.ndarray, goal: Goal, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        find_threshold(values, accepted, goal, resamples=10)


def test_a_pass_rate_needs_no_rejected_pictures() -> None:
    found = find_threshold(np.arange(100.0), np.zeros(100, bool), RATE, resamples=20)
    assert (found.pass_rate, found.recall) == (0.3, None)
    assert any("all labels are of one kind" in note for note in found.notes)
