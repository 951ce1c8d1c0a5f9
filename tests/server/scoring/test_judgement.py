from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from critiq.errors import Internal
from critiq_server.bundles.manifest import Calibration, Dimension, Reference
from critiq_server.scoring.judgement import Judgement

values = st.floats(-1e6, 1e6, allow_nan=False)
populations = st.lists(values, min_size=2, max_size=30).map(sorted)
directions = st.sampled_from(["higher_is_better", "lower_is_better"])


def judgement(quantiles: list[float] | None = None, direction: Any = "higher_is_better", **changes: Any) -> Judgement:
    reference = Reference(population="p", count=100, quantiles=quantiles) if quantiles else None
    fields: dict[str, Any] = {"name": "d", "title": "", "description": "", "stage": "s", "output": "o"}
    return Judgement(Dimension(**fields, direction=direction, reference=reference, **changes), "model", "1")


def percentile(raw: float, quantiles: list[float], direction: Any = "higher_is_better") -> float:
    found = judgement(quantiles, direction).score(raw, from_store=False).percentile
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("raw", "expected"), [(-1, 0), (0, 0), (5, 25), (10, 50), (15, 75), (20, 100), (99, 100), (2.5, 12.5)]
)
def test_a_percentile_is_a_place_among_the_quantiles(raw: float, expected: float) -> None:
    assert percentile(raw, [0, 10, 20]) == expected


def test_where_many_have_one_value_it_beats_or_equals_them_all() -> None:
    assert percentile(5, [0, 5, 5, 5, 10]) == 75
    assert percentile(5, [5, 5, 5]) == 100
    assert percentile(4.999, [5, 5, 5]) == 0


@given(populations, values, values, directions)
def test_percentiles_are_monotone_and_bounded(quantiles: list[float], one: float, other: float, direction: str) -> None:
    assume(one <= other)
    low, high = percentile(one, quantiles, direction), percentile(other, quantiles, direction)
    assert 0 <= low <= 100
    assert 0 <= high <= 100
    assert low <= high if direction == "higher_is_better" else low >= high


@given(populations, values)
def test_the_other_direction_is_the_other_end(quantiles: list[float], raw: float) -> None:
    up, down = percentile(raw, quantiles), percentile(raw, quantiles, "lower_is_better")
    assert up + down == pytest.approx(100, abs=0.02)


@given(populations)
def test_the_extremes_are_at_the_ends(quantiles: list[float]) -> None:
    assert percentile(quantiles[0] - 1, quantiles) == 0
    assert percentile(quantiles[-1] + 1, quantiles) == 100


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    raw = sorted(draw(st.sets(st.floats(-100, 100, allow_nan=False), min_size=2, max_size=8)))
    calibrated = sorted(draw(st.lists(st.floats(0, 1), min_size=len(raw), max_size=len(raw))))
    return Calibration(raw=raw, calibrated=calibrated[:: draw(st.sampled_from([1, -1]))])


@given(calibrations(), st.floats(-200, 200), st.floats(-200, 200))
def test_calibrated_values_are_monotone_and_bounded(calibration: Calibration, one: float, other: float) -> None:
    assume(one <= other)
    judge = judgement(calibration=calibration)
    low, high = (judge.score(raw, from_store=False).calibrated for raw in (one, other))
    assert low is not None
    assert high is not None
    assert min(low, high) >= 0
    assert max(low, high) <= 1
    assert low <= high if calibration.calibrated[0] <= calibration.calibrated[-1] else low >= high


@given(calibrations())
def test_calibration_goes_through_its_points(calibration: Calibration) -> None:
    judge = judgement(calibration=calibration)
    for raw, expected in zip(calibration.raw, calibration.calibrated, strict=True):
        assert judge.score(raw, from_store=False).calibrated == pytest.approx(expected, abs=1e-4)


def test_float_noise_does_not_show_in_calibrated_values() -> None:
    judge = judgement(calibration=Calibration(raw=[0, 1], calibrated=[0, 1]))
    scores = [judge.score(0.3 + noise, from_store=False).calibrated for noise in (0, 1e-7, -1e-7)]
    assert scores == [0.3, 0.3, 0.3]


def test_without_calibration_and_reference_there_is_only_the_raw_value() -> None:
    score = judgement().score(3.5, from_store=True)
    assert (score.raw, score.calibrated, score.percentile, score.from_store) == (3.5, None, None, True)


@pytest.mark.parametrize("raw", [math.nan, math.inf, -math.inf])
def test_a_model_that_gives_no_number_is_a_fault(raw: float) -> None:
    with pytest.raises(Internal, match="'d'"):
        judgement().score(raw, from_store=False)


def test_goodness_turns_the_scale() -> None:
    assert judgement().goodness(2.0) > judgement().goodness(1.0)
    assert judgement(direction="lower_is_better").goodness(2.0) < judgement(direction="lower_is_better").goodness(1.0)
