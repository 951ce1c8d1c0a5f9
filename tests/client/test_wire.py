"""Python value -> message -> bytes -> message -> Python value, for every type."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

import critiq
from critiq import errors, types, wire
from critiq.v1 import models_pb2, scoring_pb2

numbers = st.floats(allow_nan=False)
counts = st.integers(0, 2**32 - 1)
text = st.text(st.characters(codec="utf-8"), max_size=20)
# Whole milliseconds are what the wire holds.
pauses = st.none() | st.integers(0, 10**7).map(lambda milliseconds: milliseconds / 1000)

problems = st.builds(
    lambda kind, message, field, pause: kind(message, field=field, retry_after=pause),
    st.sampled_from(list(errors.BY_CODE.values())),
    text,
    text,
    pauses,
)
scores = st.builds(
    types.Score,
    text,
    numbers,
    st.none() | numbers,
    st.none() | numbers,
    st.sampled_from(get_args(types.Direction)),
    st.sampled_from(get_args(types.Scope)),
    text,
    text,
    st.booleans(),
    st.booleans(),
    text,
)
image_reports = st.builds(types.ImageReport, text, counts, counts, *[st.booleans()] * 6)
prompt_reports = st.builds(types.PromptReport, counts, counts, st.booleans())
results = st.builds(
    types.ScoreResult, st.lists(scores, max_size=3).map(tuple), image_reports, st.none() | prompt_reports
)
items = st.builds(types.ItemResult, text, result=results) | st.builds(types.ItemResult, text, error=problems)
ranked = st.builds(types.RankedImage, counts, counts, score=scores) | st.builds(
    types.RankedImage, counts, counts, error=problems
)
prefetched = st.builds(types.PrefetchResult, counts, st.lists(items, max_size=3).map(tuple))
rankings = st.builds(types.RankResult, text, st.lists(ranked, max_size=3).map(tuple))
comparisons = st.builds(
    types.CompareResult,
    st.lists(
        st.builds(types.DimensionComparison, text, st.sampled_from(get_args(types.Preference)), scores, scores),
        max_size=3,
    ).map(tuple),
    image_reports,
    image_reports,
    st.none() | prompt_reports,
)
dimensions = st.builds(
    types.Dimension,
    text,
    text,
    text,
    st.none() | numbers,
    st.none() | numbers,
    st.sampled_from(get_args(types.Direction)),
    st.sampled_from(get_args(types.Scope)),
    st.booleans(),
    numbers,
    text,
    counts,
    st.lists(numbers, max_size=4).map(tuple),
    st.booleans(),
)
stages = st.builds(types.StageInfo, text, text, text, counts, text, st.booleans(), text, text, text)
models = st.builds(
    types.Model,
    text,
    text,
    text,
    text,
    text,
    st.sampled_from(get_args(types.State)),
    text,
    st.booleans(),
    st.lists(dimensions, max_size=2).map(tuple),
    st.lists(
        st.builds(types.StageInfo, text, text, text, counts, text, st.booleans(), text, text, text), max_size=2
    ).map(tuple),
    st.builds(types.Licence, text, text, text),
)


def comparable(value: Any) -> Any:
    """Errors are equal if all they say is."""
    if isinstance(value, errors.CritiqError):
        return (type(value), value.message, value.field, value.retry_after)
    if dataclasses.is_dataclass(value):
        return (type(value), *(comparable(getattr(value, field.name)) for field in dataclasses.fields(value)))
    return [comparable(part) for part in value] if isinstance(value, tuple) else value


def over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@given(problems)
def test_errors(error: errors.CritiqError) -> None:
    assert comparable(wire.error_from_proto(over_the_wire(wire.error_to_proto(error)))) == comparable(error)


@given(scores)
def test_scores(score: types.Score) -> None:
    assert wire.score_from_proto(over_the_wire(wire.score_to_proto(score))) == score


@given(results)
def test_results(result: types.ScoreResult) -> None:
    assert wire.result_from_proto(over_the_wire(wire.result_to_proto(result))) == result


@given(items)
def test_items(item: types.ItemResult) -> None:
    assert comparable(wire.item_from_proto(over_the_wire(wire.item_to_proto(item)))) == comparable(item)


@given(rankings)
def test_rankings(ranking: types.RankResult) -> None:
    assert comparable(wire.rank_from_proto(over_the_wire(wire.rank_to_proto(ranking)))) == comparable(ranking)


@given(prefetched)
def test_prefetching(result: types.PrefetchResult) -> None:
    assert comparable(wire.prefetch_from_proto(wire.prefetch_to_proto(result))) == comparable(result)


@given(comparisons)
def test_comparisons(comparison: types.CompareResult) -> None:
    assert wire.compare_from_proto(over_the_wire(wire.compare_to_proto(comparison))) == comparison


@given(models)
def test_models(model: types.Model) -> None:
    assert wire.model_from_proto(over_the_wire(wire.model_to_proto(model))) == model


@given(st.sampled_from(get_args(types.Priority)))
def test_priorities(priority: types.Priority) -> None:
    assert wire.priority_from_proto(wire.priority_to_proto(priority)) == priority
    assert wire.priority_from_proto(scoring_pb2.PRIORITY_UNSPECIFIED) == "interactive"


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (scoring_pb2.Score, types.Score),
        (scoring_pb2.ImageReport, types.ImageReport),
        (scoring_pb2.PromptReport, types.PromptReport),
        (scoring_pb2.ScoreResponse, types.ScoreResult),
        (scoring_pb2.RankResponse, types.RankResult),
        (scoring_pb2.PrefetchResponse, types.PrefetchResult),
        (scoring_pb2.RankedImage, types.RankedImage),
        (scoring_pb2.CompareResponse, types.CompareResult),
        (scoring_pb2.DimensionComparison, types.DimensionComparison),
        (models_pb2.Model, types.Model),
        (models_pb2.Dimension, types.Dimension),
        (models_pb2.StageInfo, types.StageInfo),
        (models_pb2.Licence, types.Licence),
    ],
)
def test_no_field_is_forgotten(message: Any, kind: Any) -> None:
    assert {field.name for field in message.DESCRIPTOR.fields} == {field.name for field in dataclasses.fields(kind)}


def test_an_error_of_a_newer_server_is_still_an_error() -> None:
    error = wire.error_from_proto(scoring_pb2.Error(code="BRAND_NEW", message="text"))
    assert type(error) is critiq.CritiqError
    assert error.message == "text"


def test_an_item_without_outcome_does_not_pass_for_a_result() -> None:
    with pytest.raises(critiq.CritiqError):
        wire.item_from_proto(scoring_pb2.ScoreItemResult(id="1")).unwrap()
