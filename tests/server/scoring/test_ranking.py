"""Orders of pictures by score, thresholds and distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from critiq import types
from critiq.errors import CritiqError, FeaturesMissing, Internal, InvalidArgument
from critiq_server.bundles.manifest import Calibration, Dimension, Reference
from critiq_server.scoring import diversity
from critiq_server.scoring.judgement import Judgement
from critiq_server.scoring.ranking import Candidate, Selection, alike, check_thresholds, ranking


def judgement(name: str = "quality", **changes: Any) -> Judgement:
    """Raw values 0..10, calibrated to a tenth; a percentile is ten times the raw value."""
    values: dict[str, Any] = {
        "calibration": Calibration(raw=[0.0, 10.0], calibrated=[0.0, 1.0]),
        "reference": Reference(population="a ramp", count=11, quantiles=list(range(11))),
    }
    entry = Dimension(name=name, title=name, description="", stage="head", output=name, **(values | changes))
    return Judgement(entry, "model", "1")


QUALITY = judgement()
OTHER = judgement("other", direction="lower_is_better", calibration=Calibration(raw=[0.0, 10.0], calibrated=[1.0, 0.0]))
REPORT = types.ImageReport("PNG", 8, 8)


def candidate(index: int, raw: float, embedding: Sequence[float] = (), other: float | None = None) -> Candidate:
    scores = [QUALITY.score(raw, from_store=False)]
    if other is not None:
        scores.append(OTHER.score(other, from_store=False))
    return Candidate(index, types.ScoreResult(tuple(scores), REPORT), np.array(embedding) if embedding else None)


def places(ranked: Sequence[types.RankedImage]) -> list[tuple[int, int]]:
    return [(entry.index, entry.rank) for entry in ranked]


raws = st.integers(0, 10).map(float)
vectors = st.tuples(*[st.integers(-3, 3).map(float)] * 3)
groups = st.lists(st.tuples(raws, vectors), min_size=1, max_size=8).map(
    lambda rows: [candidate(at, raw, vector) for at, (raw, vector) in enumerate(rows)]
)


def raw_of(entry: types.RankedImage) -> float:
    assert entry.score is not None
    return entry.score.raw


@given(groups)
def test_best_first_and_ties_share_a_rank_in_their_order(group: list[Candidate]) -> None:
    ranked = ranking(QUALITY, group)
    assert [raw_of(entry) for entry in ranked] == sorted((entry.result["quality"].raw for entry in group), reverse=True)
    for entry in ranked:
        assert entry.rank == 1 + sum(raw_of(other) > raw_of(entry) for other in ranked)
    for one, two in pairwise(ranked):
        assert one.rank < two.rank or one.index < two.index


@given(groups, st.data())
def test_another_order_of_the_request_moves_only_ties(group: list[Candidate], data: st.DataObject) -> None:
    shuffled = data.draw(st.permutations(group))
    moved = [replace(entry, index=at) for at, entry in enumerate(shuffled)]
    before, after = ranking(QUALITY, group), ranking(QUALITY, moved)
    assert [(entry.rank, raw_of(entry)) for entry in before] == [(entry.rank, raw_of(entry)) for entry in after]
    ranks = {entry.index: entry.rank for entry in before}
    assert {shuffled[entry.index].index: entry.rank for entry in after} == ranks


@given(groups, st.integers(0, 10))
def test_without_diversity_embeddings_do_not_matter(group: list[Candidate], top_k: int) -> None:
    bare = [replace(entry, embedding=None) for entry in group]
    selection = Selection(top_k=top_k, diversity=0.0)
    assert ranking(QUALITY, group, selection) == ranking(QUALITY, bare, selection)


@given(groups, st.integers(1, 10), st.floats(0, 1))
def test_no_more_than_asked_for_are_ranked(group: list[Candidate], top_k: int, trade_off: float) -> None:
    ranked = ranking(QUALITY, group, Selection(top_k=top_k, diversity=trade_off))
    placed = [entry for entry in ranked if entry.rank]
    assert len(placed) == min(top_k, len(group))
    assert ranked[: len(placed)] == tuple(placed)
    assert len({entry.index for entry in ranked}) == len(ranked)


@given(groups, st.integers(1, 8), st.floats(0.01, 1))
def test_every_place_goes_to_the_best_mix_of_score_and_distance(
    group: list[Candidate], top_k: int, trade_off: float
) -> None:
    """The definition, computed anew for each place."""
    ranked = ranking(QUALITY, group, Selection(top_k=top_k, diversity=trade_off))

    def similarity(one: int, two: int) -> float:
        a, b = group[one].embedding, group[two].embedding
        assert a is not None
        assert b is not None
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        return round(float(a @ b) / length, 4) if length else 0.0

    def worth(index: int, before: Sequence[int]) -> float:
        nearest = max([0.0] + [similarity(index, other) for other in before])
        return (1 - trade_off) * group[index].result["quality"].raw / 10 + trade_off * (1 - nearest)

    order = [entry.index for entry in ranked if entry.rank]
    assert raw_of(ranked[0]) == max(entry.result["quality"].raw for entry in group)
    for place in range(1, len(order)):
        left = [entry.index for entry in group if entry.index not in order[:place]]
        best = max(worth(index, order[:place]) for index in left)
        assert worth(order[place], order[:place]) == pytest.approx(best, abs=2e-4)
    assert [entry.rank for entry in ranked if entry.rank] == list(range(1, len(order) + 1))
    for entry in ranked:
        if entry.similar_to is not None:
            assert entry.similarity == pytest.approx(similarity(entry.index, entry.similar_to), abs=2e-4)
            assert not entry.rank or entry.similar_to in order[: entry.rank - 1]
            assert f"picture {entry.similar_to}," in entry.reason


@given(groups, st.integers(0, 8), st.floats(0, 1))
def test_the_same_twice(group: list[Candidate], top_k: int, trade_off: float) -> None:
    selection = Selection(top_k=top_k, diversity=trade_off)
    assert ranking(QUALITY, group, selection) == ranking(QUALITY, group, selection)


def test_a_duplicate_is_left_out_for_its_twin() -> None:
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    group = [candidate(0, 8, red), candidate(1, 7.5, red), candidate(2, 5, blue)]
    ranked = ranking(QUALITY, group, Selection(top_k=2, diversity=0.5))
    assert places(ranked) == [(0, 1), (2, 2), (1, 0)]
    assert (ranked[2].similar_to, ranked[2].similarity) == (0, 1.0)
    assert ranked[2].reason == "left out for picture 0, which it resembles (cosine similarity 1)"
    assert ranked[0].reason == ranked[1].reason == ""
    everything = ranking(QUALITY, group, Selection(diversity=0.5))
    assert places(everything) == [(0, 1), (2, 2), (1, 3)]
    assert everything[2].similar_to == 0
    assert everything[2].reason.startswith("placed behind picture 0")
    assert places(ranking(QUALITY, group, Selection(diversity=0.1))) == [(0, 1), (1, 2), (2, 3)]


def test_without_calibration_relevance_is_the_place_between_worst_and_best() -> None:
    bare = judgement(calibration=None)
    scores = [bare.score(raw, from_store=False) for raw in (2.0, 4.0, 10.0)]
    assert diversity.relevances(bare, scores).tolist() == [0.0, 0.25, 1.0]
    lower = judgement(calibration=None, direction="lower_is_better")
    assert diversity.relevances(lower, scores).tolist() == [1.0, 0.75, 0.0]
    assert diversity.relevances(bare, scores[:1]).tolist() == [1.0]


def test_embeddings_without_length_are_like_none_and_noise_does_not_show() -> None:
    found = diversity.similarities([np.array(row) for row in ([0.0, 0.0], [1.0, 0.0], [2.0, 1e-7])])
    assert found.tolist() == [[0.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    with pytest.raises(Internal, match="'encoder' gave an embedding that is not finite"):
        diversity.checked(np.array([1.0, math.nan]), "encoder")


@given(groups, raws)
def test_thresholds_part_the_pictures(group: list[Candidate], least: float) -> None:
    ranked = ranking(QUALITY, group, Selection(thresholds=(types.Threshold(least, scale="raw"),)))
    assert {entry.index for entry in ranked if entry.rank} == {
        entry.index for entry in group if entry.result["quality"].raw >= least
    }
    below = [entry for entry in ranked if not entry.rank]
    assert all(entry.missed and entry.reason for entry in below)
    assert [entry.index for entry in below] == sorted(entry.index for entry in below)


def test_thresholds_of_further_dimensions_say_what_was_missed() -> None:
    group = [candidate(0, 9, other=6), candidate(1, 8, other=2), candidate(2, 1, other=1)]
    thresholds = (types.Threshold(5, "other", "raw"), types.Threshold(0.5))
    ranked = ranking(QUALITY, group, Selection(top_k=5, thresholds=thresholds))
    assert places(ranked) == [(1, 1), (0, 0), (2, 0)]
    assert ranked[1].missed == (types.MissedThreshold("other", "raw", 5, 6.0),)  # lower is better
    assert ranked[1].reason == "other raw 6 is above 5"
    assert ranked[2].missed == (types.MissedThreshold("quality", "calibrated", 0.5, 0.1),)
    assert ranked[2].reason == "quality calibrated 0.1 is below 0.5"
    assert [score.dimension for score in ranked[0].others] == ["other"]


def test_the_best_are_taken_after_the_thresholds() -> None:
    group = [candidate(0, 9, other=9), candidate(1, 8, other=1), candidate(2, 7, other=1)]
    ranked = ranking(QUALITY, group, Selection(top_k=2, thresholds=(types.Threshold(50, "other", "percentile"),)))
    assert places(ranked) == [(1, 1), (2, 2), (0, 0)]


def test_a_degraded_score_has_no_value_to_hold_against_a_percentile() -> None:
    group = [candidate(0, 9)]
    degraded = replace(group[0].result.scores[0], degraded=True, degraded_reason="nothing stored", percentile=None)
    group[0] = replace(group[0], result=types.ScoreResult((degraded,), REPORT))
    for scale in ("percentile", "raw"):
        (entry,) = ranking(QUALITY, group, Selection(thresholds=(types.Threshold(1, scale=scale),)))
        assert entry.rank == 0
        assert entry.missed[0].value is None
        assert "degraded" in entry.reason
    (entry,) = ranking(QUALITY, group, Selection(thresholds=(types.Threshold(0.5),)))
    assert entry.rank == 1
    mixed = alike(QUALITY, [*group, candidate(1, 3)])
    assert isinstance(mixed[0], FeaturesMissing)
    assert alike(QUALITY, group) == group


def test_failures_stand_last_with_their_place() -> None:
    failed: list[Candidate | CritiqError] = [InvalidArgument("broken", field="image.encoded"), candidate(1, 2)]
    ranked = ranking(QUALITY, failed, Selection(diversity=0.0))
    assert places(ranked) == [(1, 1), (0, 0)]
    assert ranked[1].error is not None
    assert ranked[1].error.field == "images[0].encoded"
    assert ranking(QUALITY, failed[:1], Selection(diversity=0.5, top_k=3))[0].error is not None


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"diversity": 1.01}, "diversity"),
        ({"diversity": -0.1}, "diversity"),
        ({"diversity": math.nan}, "diversity"),
        ({"top_k": -1}, "top_k"),
        ({"thresholds": (types.Threshold(0.1),) * 17}, "thresholds"),
    ],
)
def test_selections_that_make_no_sense(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        Selection(**changes)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("threshold", "field"),
    [
        (types.Threshold(1.5), "thresholds[0].at_least"),
        (types.Threshold(-1, scale="percentile"), "thresholds[0].at_least"),
        (types.Threshold(math.inf, scale="raw"), "thresholds[0].at_least"),
        (types.Threshold(0.5, "bare"), "thresholds[0].scale"),
        (types.Threshold(5, "bare", "percentile"), "thresholds[0].scale"),
    ],
)
def test_thresholds_that_cannot_be_compared(threshold: types.Threshold, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_thresholds([QUALITY, judgement("bare", calibration=None, reference=None)], [threshold], "quality")
    assert caught.value.field == field


def test_thresholds_as_text() -> None:
    assert types.Threshold.parse("visual_quality:percentile=20") == types.Threshold(20, "visual_quality", "percentile")
    assert types.Threshold.parse(" raw = -1.5") == types.Threshold(-1.5, "", "raw")
    for text in ("", "visual_quality", "visual_quality=3", "a:b=3", "a:raw=", "a:raw=three", "raw:3"):
        with pytest.raises(InvalidArgument, match="is no threshold; write"):
            types.Threshold.parse(text)
