"""Scores of several pictures, held against each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from critiq import types
from critiq.errors import CritiqError, FeaturesMissing
from critiq_server.scoring.judgement import Judgement


def ranking(judgement: Judgement, results: Iterable[types.ItemResult], top_k: int) -> tuple[types.RankedImage, ...]:
    """The results of one dimension, best first; ties share a rank and keep their order, failures come last."""
    scored: list[tuple[int, types.Score]] = []
    failed: list[types.RankedImage] = []
    for index, result in enumerate(results):
        if result.result is not None:
            scored.append((index, result.result.scores[0]))
        elif result.error is not None:
            failed.append(types.RankedImage(index, 0, error=placed(result.error, f"images[{index}]")))
    scored.sort(key=lambda entry: -judgement.goodness(entry[1].raw))  # stable: ties keep the order of the request
    ranking: list[types.RankedImage] = []
    for place, (index, score) in enumerate(scored, start=1):
        previous = ranking[-1] if ranking else None
        tied = previous is not None and previous.score is not None and previous.score.raw == score.raw
        ranking.append(types.RankedImage(index, previous.rank if tied and previous else place, score=score))
    return tuple((ranking[:top_k] if top_k else ranking) + failed)


def alike(results: Sequence[types.ItemResult]) -> Sequence[types.ItemResult]:
    """``results`` with degraded scores turned into errors, if some are not: the two are on different scales."""
    scores = [result.result.scores[0] for result in results if result.result is not None]
    if {score.degraded for score in scores} != {True, False}:
        return results
    return [
        types.ItemResult(result.id, error=unlike(result.result.scores[0]))
        if result.result is not None and result.result.scores[0].degraded
        else result
        for result in results
    ]


def unlike(score: types.Score) -> FeaturesMissing:
    """The error of a degraded score among full ones."""
    return FeaturesMissing(
        f"its score is degraded and cannot be compared with full ones: {score.degraded_reason}", field="image"
    )


def comparison(judgement: Judgement, first: types.Score, second: types.Score) -> types.DimensionComparison:
    """Which of two scores of one dimension is better; differences within its tolerance are ties."""
    difference = judgement.goodness(first.raw) - judgement.goodness(second.raw)
    preference: types.Preference = "first" if difference > 0 else "second"
    if abs(difference) <= judgement.dimension.tolerance:
        preference = "tie"
    return types.DimensionComparison(first.dimension, preference, first, second)


def placed(error: CritiqError, place: str) -> CritiqError:
    """An item's error in the call that it belongs to: its ``image...`` field is the item itself."""
    if not error.field.startswith("image"):
        return error
    return type(error)(error.message, field=place + error.field.removeprefix("image"), retry_after=error.retry_after)
