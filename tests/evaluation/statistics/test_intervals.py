"""Intervals that cover what they claim, and comparisons that tell a better model from a lucky one."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.statistics import bootstrap_plcc, bootstrap_srcc, compare_srcc, holm
from critiq_evaluation.statistics.contents import drawn


def related(count: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=count)
    return x, x + noise * generator.normal(size=count)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    truth = 6 / np.pi * np.arcsin(1 / np.sqrt(1 + 0.75**2) / 2)  # Spearman's of two normals with that correlation
    pearson = 1 / np.sqrt(1 + 0.75**2)
    covered = covered_pearson = 0
    for seed in range(60):
        x, y = related(80, 0.75, seed)
        srcc, plcc = bootstrap_srcc(x, y, resamples=300), bootstrap_plcc(x, y, resamples=300)
        assert srcc is not None
        assert plcc is not None
        covered += srcc.low <= truth <= srcc.high
        covered_pearson += plcc.low <= pearson <= plcc.high
    assert 51 <= covered <= 60
    assert 51 <= covered_pearson <= 60


def test_intervals_are_near_fishers_and_repeat_with_the_seed() -> None:
    x, y = related(2000, 0.75, 1)
    found = bootstrap_plcc(x, y, seed=4)
    assert found is not None
    assert found.method == "percentile"
    fisher = stats.pearsonr(x, y).confidence_interval(0.95)
    assert found.low == pytest.approx(fisher.low, abs=0.01)
    assert found.high == pytest.approx(fisher.high, abs=0.01)
    assert found == bootstrap_plcc(x, y, seed=4)
    assert found != bootstrap_plcc(x, y, seed=5)


def test_small_sets_get_bca_and_undefined_ones_nothing() -> None:
    x, y = related(100, 0.75, 1)
    found = bootstrap_srcc(x, y)
    assert found is not None
    assert found.method == "BCa"
    assert found.low < stats.spearmanr(x, y).statistic < found.high
    assert bootstrap_srcc(np.ones(50), np.arange(50)) is None
    assert bootstrap_srcc([1, 2], [1, 2]) is None
    perfect = bootstrap_srcc(np.arange(50), np.arange(50))  # where BCa has no acceleration
    assert perfect is not None
    assert (perfect.low, perfect.high) == pytest.approx((1, 1))


def test_a_better_model_is_told_from_a_lucky_one() -> None:
    generator = np.random.default_rng(0)
    truth = generator.normal(size=400)
    good, poor = truth + 0.5 * generator.normal(size=400), truth + 1.5 * generator.normal(size=400)
    found = compare_srcc(good, poor, truth)
    assert found.difference is not None
    assert found.low is not None
    assert found.low > 0
    assert found.p_value == pytest.approx(1 / 1001)
    assert found.difference == pytest.approx(
        stats.spearmanr(good, truth).statistic - stats.spearmanr(poor, truth).statistic, abs=1e-9
    )
    back = compare_srcc(poor, good, truth)
    assert back.difference == pytest.approx(-found.difference)

    alarms = 0
    for seed in range(60):
        generator = np.random.default_rng(seed)
        truth = generator.normal(size=100)
        one, other = truth + generator.normal(size=100), 100 * (truth + generator.normal(size=100))
        chance = compare_srcc(one, other, truth, resamples=200)
        assert chance.p_value is not None
        alarms += chance.p_value < 0.05
    assert alarms <= 9


def test_comparisons_without_an_answer_say_why() -> None:
    x, y = related(50, 1, 2)
    alike = compare_srcc(x, np.exp(x), y)
    assert (alike.difference, alike.p_value) == (0.0, 1.0)
    assert "alike" in alike.reason
    constant = compare_srcc(x, np.ones(50), y)
    assert constant.difference is None
    assert "second model: all 50 scores are 1" in constant.reason


def test_holms_adjustment() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def alike(seed: int, contents: int = 30, each: int = 10) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Pictures that resemble the others of their content in score and in rating, without any relation of the two."""
    generator = np.random.default_rng(seed)
    names = np.repeat(np.arange(contents), each)
    x = generator.normal(size=contents)[names] + 0.3 * generator.normal(size=names.size)
    y = generator.normal(size=contents)[names] + 0.3 * generator.normal(size=names.size)
    return x, y, [f"prompt {name}" for name in names]


def test_pictures_of_one_content_are_drawn_together() -> None:
    covered = singly = 0
    for seed in range(25):
        x, y, contents = alike(seed)
        together = bootstrap_srcc(x, y, contents=contents, resamples=100)
        apart = bootstrap_srcc(x, y, resamples=100)
        assert together is not None
        assert apart is not None
        assert together.contents == 30
        covered += together.low <= 0 <= together.high
        singly += apart.low <= 0 <= apart.high
    assert covered >= 20
    assert singly <= 17  # where it claims 24: what drawing by content is for


def test_chance_is_told_from_difference_by_content_too() -> None:
    alarms = singly = 0
    for seed in range(25):
        one, truth, contents = alike(seed)
        other, _, _ = alike(seed + 1000)
        found = compare_srcc(one, other, truth, contents=contents, resamples=100)
        apart = compare_srcc(one, other, truth, resamples=100)
        assert found.p_value is not None
        assert apart.p_value is not None
        alarms += found.p_value < 0.05
        singly += apart.p_value < 0.05
    assert alarms <= 5
    assert singly >= 8


def test_contents_are_drawn_whole() -> None:
    numbers = np.array([2, 0, 1, 0, 2, 2])
    members = {0: [1, 3], 1: [2], 2: [0, 4, 5]}
    sizes = set()
    for places in drawn(numbers, 50, np.random.default_rng(0)):
        left = places.tolist()
        for _ in range(3):
            content = members[int(numbers[left[0]])]
            assert left[: len(content)] == content
            left = left[len(content) :]
        assert left == []
        sizes.add(len(places))
    assert len(sizes) > 3


def test_contents_that_say_nothing_change_nothing() -> None:
    x, y = related(60, 1, 3)
    plain = bootstrap_srcc(x, y)
    assert bootstrap_srcc(x, y, contents=[str(i) for i in range(60)]) == plain
    assert bootstrap_srcc(x, y, contents=["a prompt"] * 60) == plain
    with pytest.raises(EvaluationError, match="1 contents for 60 pictures"):
        bootstrap_srcc(x, y, contents=["a"])
