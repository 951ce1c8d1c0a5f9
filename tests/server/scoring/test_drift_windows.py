from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from critiq_server.scoring.drift_windows import Moments, Ring, Sketch


def sketch_of(*values: float) -> Sketch:
    sketch = Sketch()
    sketch.update(np.array(values))
    return sketch


def ring(units: int) -> Ring[Sketch]:
    return Ring(10.0, 10.0 * units, Sketch)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=60), st.integers(1, 300))
def test_a_ring_keeps_every_value_of_its_time_once_in_few_slots(gaps: list[int], units: int) -> None:
    kept, at, times = ring(units), 0, []
    for gap in gaps:
        at += gap
        kept.update(np.array([float(at)]), 10.0 * at)
        times.append(at)
    spans = [(slot.start, slot.end) for slot in kept.slots]
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    assert len(spans) <= 4 * units.bit_length() + 4
    recent = sum(at - when < units for when in times)
    assert recent <= sum(slot.summary.count for slot in kept.slots) <= len(times)
    windows = [(start, total.copy()) for start, total in kept.windows(10.0 * at)]
    for start, total in windows:
        # What a window holds is exactly what came since it began.
        assert total.count == sum(when >= start for when in times)
        assert at - start < units


def test_windows_double() -> None:
    kept = ring(1000)
    for at in range(1000):
        kept.update(np.array([1.0]), 10.0 * at)
    counts = [total.count for _, total in kept.windows(9990.0)]
    assert counts[0] == 1
    assert counts[-1] > 700
    assert all(now <= 3 * before + 1 for before, now in pairwise(counts))
    assert len(kept.slots) < 30


def test_a_clock_that_goes_back_loses_nothing() -> None:
    kept = ring(100)
    kept.update(np.array([1.0]), 5000.0)
    kept.update(np.array([2.0]), 4000.0)
    assert [total.count for _, total in kept.windows(5000.0)] == [2]


def test_rings_of_servers_merge_to_what_one_server_would_have() -> None:
    one, two, both = ring(64), ring(64), ring(64)
    for at in range(200):
        one.update(np.array([1.0]), 10.0 * at)
        both.update(np.array([1.0]), 10.0 * at)
        if at % 3 == 0:
            two.update(np.array([2.0, 3.0]), 10.0 * at)
            both.update(np.array([2.0, 3.0]), 10.0 * at)
    one.merge(two.slots)
    merged = {start: total.count for start, total in one.windows(1990.0)}
    assert merged == {start: total.count for start, total in both.windows(1990.0)}
    assert sum(slot.summary.count for slot in two.slots) < 200  # was left as it was


def test_sketches_survive_as_text_and_nan_is_left_out() -> None:
    sketch = sketch_of(1.0, np.nan, 3.0, 2.0)
    again = Sketch.load(sketch.dump())
    assert again.count == 3
    assert again.quantiles(np.array([0.01, 0.5, 1.0])).tolist() == [1.0, 2.0, 3.0]


def test_a_sketch_of_many_values_is_right_to_its_rank_error() -> None:
    values = np.random.default_rng(3).normal(size=100_000).astype(np.float32)
    sketch = Sketch()
    for part in np.array_split(values, 50):
        sketch.update(part)
    points = np.linspace(-3, 3, 100).astype(np.float32)
    exact = np.searchsorted(np.sort(values), points, side="right") / len(values)
    assert 0 < sketch.rank_error < 0.004
    assert np.abs(sketch.cdf(points, inclusive=True) - exact).max() < sketch.rank_error


@pytest.mark.parametrize("dumped", [{}, {"kll": "?"}, {"kll": "AAAA"}, {"kll": 7}, {"kll": ""}])
def test_what_is_no_sketch_is_refused(dumped: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="no KLL sketch"):
        Sketch.load(dumped)


def test_moments_merge_and_survive_as_text() -> None:
    vectors = np.random.default_rng(1).normal(3, 2, size=(50, 4))
    one, two = Moments(4), Moments(4)
    one.update(vectors[:20])
    two.update(vectors[20:])
    one.merge(Moments.load(two.dump()))
    assert one.count == 50
    np.testing.assert_allclose(one.mean, vectors.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(one.spread, vectors.std(axis=0), atol=1e-12)
    with pytest.raises(ValueError, match="no sums of vectors"):
        Moments.load({"moments": "AAAA", "count": 1})
