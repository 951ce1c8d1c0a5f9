from __future__ import annotations

import numpy as np
import pytest

from critiq_server.bundles.manifest import Reference
from critiq_server.scoring.drift_series import Series
from critiq_server.scoring.drift_settings import DriftSettings

START = 1_800_000_000.0
REFERENCE = Reference(population="standard normal", count=5000, quantiles=np.linspace(-3, 3, 101).tolist())


class Stream:
    """A series of one score, fed with normal values every minute and looked at."""

    def __init__(self, reference: Reference | None = None, **settings: object) -> None:
        self.series = Series("score", "quality", DriftSettings(**{"baseline_requests": 5000, **settings}), reference)
        self.now = START
        self.rng = np.random.default_rng(0)
        self.states: list[str] = []

    def feed(self, minutes: int, mean: float = 0.0, sd: float = 1.0, each: int = 50) -> Stream:
        for _ in range(minutes):
            self.now += 60
            self.series.update(self.rng.normal(mean, sd, each), self.now)
            self.states.append(self.series.look(self.now))
        return self


def test_the_first_values_become_the_baseline_and_more_of_the_same_is_steady() -> None:
    stream = Stream().feed(99)
    assert set(stream.states) == {"learning"}
    stream.feed(1)
    assert stream.series.frozen == stream.now
    stream.feed(720)
    assert set(stream.states[100:]) == {"steady"}


@pytest.mark.parametrize(
    ("mean", "sd", "within"), [(0.5, 1.0, 800), (-0.5, 1.0, 800), (0.25, 1.0, 7000), (0.0, 1.5, 7000)]
)
def test_a_change_is_an_alarm_within_so_many_values(mean: float, sd: float, within: int) -> None:
    stream = Stream().feed(400)
    before = stream.series.count
    while stream.states[-1] != "alarm":
        stream.feed(1, mean, sd)
        assert stream.series.count - before <= within
    assert stream.series.since == stream.now
    window = stream.series.latest
    assert window is not None
    assert window.comparisons["baseline"].p_value < 1e-8


def test_an_alarm_ends_once_its_cause_was_gone_for_a_while() -> None:
    stream = Stream(keep_days=0.25, clear_seconds=3600).feed(200).feed(60, mean=1.0)
    calm = 0
    for _ in range(600):
        stream.feed(1)
        if stream.states[-1] != "alarm":
            break
        calm = calm + 1 if stream.series.judge(stream.now) == "steady" else 0
    assert calm == 60  # minutes
    assert len(stream.states) > 200 + 60 + 4 * 60  # the changed values had to leave the windows, of up to six hours
    stream.feed(200)
    assert set(stream.states[-200:]) == {"steady"}  # no flicker


def test_a_certain_but_tiny_difference_is_none() -> None:
    stream = Stream(least_ks=0.3).feed(200).feed(120, mean=0.5)
    assert stream.states[-1] == "steady"


def test_freezing_takes_the_last_hours_as_the_new_normal() -> None:
    stream = Stream().feed(200).feed(120, mean=1.0)
    assert stream.states[-1] == "alarm"
    assert 1500 <= stream.series.count_since(stream.now, 3600) <= 3000  # whole slots: half of the hour at least
    stream.series.freeze(stream.now, 3600)
    stream.feed(300, mean=1.0)
    assert set(stream.states[-300:]) == {"steady"}
    stream.feed(30)
    assert stream.states[-1] == "alarm"  # what was normal is not any more


def test_of_what_is_older_nothing_counts() -> None:
    stream = Stream().feed(150)
    assert stream.series.count_since(stream.now, 7200) > 0
    assert stream.series.count_since(stream.now + 7200, 3600) == 0


def test_learning_anew_forgets_the_alarm() -> None:
    stream = Stream().feed(200).feed(60, mean=1.0)
    stream.series.learn(500, stream.now)
    assert stream.series.state == "learning"
    stream.feed(200, mean=1.0)
    assert stream.states[-1] == "steady"
    assert stream.series.baseline is not None
    assert stream.series.baseline.count == 500


def test_alarms_can_go_by_the_bundles_reference() -> None:
    uniform = {"each": 50, "mean": 0.0, "sd": 1.0}
    assert Stream(REFERENCE, against="reference").feed(60, **uniform).states[-1] == "alarm"
    by_baseline = Stream(REFERENCE).feed(200, **uniform)
    assert by_baseline.states[-1] == "steady"
    assert by_baseline.series.latest is not None
    assert set(by_baseline.series.latest.comparisons) == {"baseline", "reference"}
    # What has no reference goes by its baseline all the same.
    assert Stream(against="reference").feed(1).states == ["learning"]


def test_what_was_dumped_goes_on_elsewhere() -> None:
    stream = Stream().feed(200).feed(60, mean=1.0)
    again = Series("score", "quality", stream.series.settings)
    again.restore(stream.series.dump())
    assert (again.state, again.since, again.count) == ("alarm", stream.series.since, stream.series.count)
    assert again.judge(stream.now) == "alarm"
    assert [window.count for window in again.windows(stream.now)] == [
        window.count for window in stream.series.windows(stream.now)
    ]


def test_a_series_of_another_slot_length_keeps_only_the_baseline() -> None:
    stream = Stream().feed(200)
    again = Series("score", "quality", DriftSettings(slot_seconds=60))
    again.restore(stream.series.dump())
    assert again.frozen == stream.series.frozen
    assert again.ring.slots == []
    with pytest.raises(ValueError, match=r"windows are made of 300 s, these of 60 s"):
        again.merge(stream.series.dump())


@pytest.mark.parametrize(
    "change", [{"slots": None}, {"state": "odd"}, {"baseline": None}, {"count": "many"}, {"slots": [{"start": 1}]}]
)
def test_damaged_dumps_are_refused_and_change_nothing(change: dict[str, object]) -> None:
    dumped = Stream().feed(120).series.dump()
    again = Series("score", "quality", DriftSettings())
    with pytest.raises(ValueError, match=r".+"):
        again.restore({**dumped, **change})
    assert (again.count, again.baseline, again.ring.slots) == (0, None, [])


def test_halves_of_a_change_on_two_servers_are_an_alarm_together() -> None:
    one, two = Stream(least_count=50), Stream(least_count=50)
    two.rng = np.random.default_rng(1)
    for stream in (one, two):
        stream.feed(200)
        stream.feed(9, mean=0.45, each=25)
    assert {one.states[-1], two.states[-1]} <= {"steady", "warning"}
    one.series.merge(two.series.dump())
    assert one.series.judge(one.now) == "alarm"
    assert one.series.baseline is not None
    assert one.series.baseline.count == 10_000
