"""From a score to a reward, the same on the server's faces and in the client: larger is better, and comparable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from critiq import types
from critiq.errors import (
    CritiqError,
    DeadlineExceeded,
    FailedPrecondition,
    FeaturesMissing,
    InvalidArgument,
    ModelNotLoaded,
    NotFound,
    Stopping,
    TooBusy,
)
from critiq.rewards import Term
from critiq_server.api.compat.http import status
from critiq_server.api.compat.rewards import _reward
from critiq_server.settings import RewardSettings

SCORE = types.Score("quality", 3.5, 0.7, 71.0, "higher_is_better", "absolute", "m", "1", from_store=False)


def on_the_server(score: types.Score, scale: Any) -> float | CritiqError:
    report = types.ImageReport("PNG", 1, 1)
    item = types.ItemResult("0", types.ScoreResult((score,), report))
    return _reward(item, RewardSettings(dimension="quality", scale=scale))


def in_the_client(score: types.Score, scale: Any) -> float | CritiqError:
    return Term("quality", scale=scale).value(score, allow_degraded=False)


BOTH = pytest.mark.parametrize("value", [on_the_server, in_the_client])


@BOTH
def test_each_scale(value: Any) -> None:
    assert [value(SCORE, scale) for scale in ("raw", "calibrated", "percentile")] == [3.5, 0.7, 71.0]


@BOTH
def test_where_lower_is_better_only_the_raw_value_turns(value: Any) -> None:
    distortion = replace(SCORE, direction="lower_is_better")
    assert [value(distortion, scale) for scale in ("raw", "calibrated", "percentile")] == [-3.5, 0.7, 71.0]


@BOTH
def test_a_scale_that_a_bundle_lacks(value: Any) -> None:
    bare = replace(SCORE, calibrated=None, percentile=None)
    assert value(bare, "raw") == 3.5
    for scale in ("calibrated", "percentile"):
        error = value(bare, scale)
        assert isinstance(error, FailedPrecondition)
        assert f"no {scale} value" in error.message


@BOTH
def test_a_degraded_score_does_not_count(value: Any) -> None:
    error = value(replace(SCORE, degraded=True, degraded_reason="features are not stored"), "calibrated")
    assert isinstance(error, FeaturesMissing)
    assert "features are not stored" in error.message


def test_a_degraded_score_counts_if_asked_for_but_never_its_raw_value() -> None:
    degraded = replace(SCORE, degraded=True, percentile=None)
    assert Term("quality").value(degraded, allow_degraded=True) == 0.7
    assert isinstance(Term("quality", scale="raw").value(degraded, allow_degraded=True), FeaturesMissing)


@pytest.mark.parametrize(
    ("error", "code", "seconds"),
    [
        (TooBusy("", retry_after=2.3), 503, "3"),
        (TooBusy("", retry_after=0.05), 503, "1"),
        (Stopping("", retry_after=1.0), 503, "1"),
        (DeadlineExceeded(""), 503, "1"),
        (ModelNotLoaded("it is loading", retry_after=5.0), 503, "5"),
        (ModelNotLoaded("nobody loads it"), 400, None),
        (InvalidArgument(""), 400, None),
        (NotFound(""), 400, None),
        (FeaturesMissing(""), 400, None),
        (CritiqError("a fault"), 400, None),
    ],
)
def test_what_may_pass_is_503_with_a_hint_and_nothing_is_500(error: CritiqError, code: int, seconds: Any) -> None:
    found, headers = status(error)
    assert found == code
    assert headers.get("Retry-After") == seconds
