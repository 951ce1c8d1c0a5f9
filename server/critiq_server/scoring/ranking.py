"""Scores of several pictures, held against each other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from critiq import types
from critiq.errors import CritiqError, FeaturesMissing, InvalidArgument
from critiq_server.scoring.diversity import Embedding, diverse_order, relevances, similarities
from critiq_server.scoring.judgement import Judgement
from critiq_server.scoring.policies import TOP, value_on

MAX_THRESHOLDS = 16


@dataclass(frozen=True, slots=True)
class Selection:
    """Which of the pictures are ranked; see ``RankRequest`` in the contract.

    Raises:
        InvalidArgument: there are more than ``MAX_THRESHOLDS`` thresholds, ``diversity`` is outside 0..1, or ``top_k``
            is negative.
    """

    top_k: int = 0
    thresholds: tuple[types.Threshold, ...] = ()
    diversity: float = 0.0
    embedding: str = ""
    """``stage`` or ``stage/output``; empty: the model's image encoder. Not looked at where ``diversity`` is 0."""

    def __post_init__(self) -> None:
        if len(self.thresholds) > MAX_THRESHOLDS:
            raise InvalidArgument(
                f"{len(self.thresholds)} thresholds, at most {MAX_THRESHOLDS} are allowed", field="thresholds"
            )
        if not 0 <= self.diversity <= 1:  # NaN is not either
            raise InvalidArgument(
                f"{self.diversity:g} is no trade-off between score and distance; give 0 (score alone) to 1",
                field="diversity",
            )
        if self.top_k < 0:
            raise InvalidArgument(f"{self.top_k}; 0 (all) or more are due", field="top_k")


EVERYTHING = Selection()


@dataclass(frozen=True, slots=True)
class Candidate:
    """One picture that was scored, and where diversity is asked for, its embedding; ``index`` is its place."""

    index: int
    result: types.ScoreResult
    embedding: Embedding | None = None


def ranking(
    judgement: Judgement, candidates: Sequence[Candidate | CritiqError], selection: Selection = EVERYTHING
) -> tuple[types.RankedImage, ...]:
    """The ranked pictures, best first; behind them those that are not, each with its reason or error.

    ``judgement`` is that of the dimension to rank by; the results hold it and the thresholds' dimensions. Equal raw
    values share a rank and keep their order, unless diversity is asked for.
    """
    eligible: list[Candidate] = []
    missing: list[types.RankedImage] = []
    failed: list[types.RankedImage] = []
    for index, candidate in enumerate(candidates):
        if isinstance(candidate, CritiqError):
            failed.append(types.RankedImage(index, 0, error=placed(candidate, f"images[{index}]")))
        elif missed := _missed(candidate.result, selection.thresholds, judgement):
            missing.append(_entry(judgement, candidate, 0, missed=missed))
        else:
            eligible.append(candidate)
    # Stable: ties keep the order of the request.
    eligible.sort(key=lambda entry: -judgement.goodness(_score(judgement, entry).raw))
    order = _diverse if selection.diversity else _by_score
    return (*order(judgement, eligible, selection), *missing, *failed)


def _by_score(judgement: Judgement, eligible: Sequence[Candidate], selection: Selection) -> list[types.RankedImage]:
    ranked: list[types.RankedImage] = []
    for place, candidate in enumerate(eligible[: selection.top_k or None], start=1):
        previous = ranked[-1] if ranked else None
        tied = previous and previous.score and previous.score.raw == _score(judgement, candidate).raw
        ranked.append(_entry(judgement, candidate, previous.rank if previous and tied else place))
    return ranked


def _diverse(judgement: Judgement, eligible: Sequence[Candidate], selection: Selection) -> list[types.RankedImage]:
    """Those ranked by score and distance, then those that score alone would have put among the best ``top_k``."""
    if not eligible:
        return []
    scores = [_score(judgement, candidate) for candidate in eligible]
    alike = similarities([candidate.embedding for candidate in eligible if candidate.embedding is not None])
    count = min(selection.top_k or len(eligible), len(eligible))
    order = diverse_order(relevances(judgement, scores), alike, selection.diversity, count)

    def entry(place: int, rank: int, ahead: Sequence[int]) -> types.RankedImage:
        candidate = eligible[place]
        if place >= len(ahead) and rank:
            return _entry(judgement, candidate, rank)
        like = alike[place, ahead]
        nearest = min(other for other, value in zip(ahead, like == like.max(), strict=True) if value)
        return _entry(
            judgement, candidate, rank, similar_to=eligible[nearest].index, similarity=float(alike[place, nearest])
        )

    ranked = [entry(place, at + 1, order[:at]) for at, place in enumerate(order)]
    skipped = sorted(set(range(count)) - set(order), key=lambda place: eligible[place].index)
    return ranked + [entry(place, 0, order) for place in skipped]


def _entry(
    judgement: Judgement,
    candidate: Candidate,
    rank: int,
    missed: tuple[types.MissedThreshold, ...] = (),
    similar_to: int | None = None,
    similarity: float | None = None,
) -> types.RankedImage:
    own = judgement.dimension.name
    reason = "; ".join(_in_words(entry) for entry in missed)
    if similar_to is not None:
        verb = "placed behind" if rank else "left out for"
        reason = f"{verb} picture {similar_to}, which it resembles (cosine similarity {similarity:.4g})"
    return types.RankedImage(
        candidate.index,
        rank,
        score=candidate.result[own],
        others=tuple(score for score in candidate.result if score.dimension != own),
        missed=missed,
        similar_to=similar_to,
        similarity=similarity,
        reason=reason,
    )


def _score(judgement: Judgement, candidate: Candidate) -> types.Score:
    return candidate.result[judgement.dimension.name]


def _missed(
    result: types.ScoreResult, thresholds: Sequence[types.Threshold], judgement: Judgement
) -> tuple[types.MissedThreshold, ...]:
    missed = []
    for threshold in thresholds:
        score = result[threshold.dimension or judgement.dimension.name]
        value = value_on(score, threshold.scale)
        lower = threshold.scale == "raw" and score.direction == "lower_is_better"
        if value is None or (value > threshold.at_least if lower else value < threshold.at_least):
            missed.append(types.MissedThreshold(score.dimension, threshold.scale, threshold.at_least, value))
    return tuple(missed)


def _in_words(missed: types.MissedThreshold) -> str:
    what = f"{missed.dimension} {missed.scale}"
    if missed.value is None:
        return f"there is no {what} value to hold against {missed.at_least:g}: its score is degraded"
    return f"{what} {missed.value:.4g} is {'below' if missed.value < missed.at_least else 'above'} {missed.at_least:g}"


def alike(judgement: Judgement, candidates: Sequence[Candidate | CritiqError]) -> Sequence[Candidate | CritiqError]:
    """``candidates`` with degraded scores turned into errors, if some are not: the two are on different scales."""
    own = judgement.dimension.name
    scores = [entry.result[own] for entry in candidates if isinstance(entry, Candidate)]
    if {score.degraded for score in scores} != {True, False}:
        return candidates
    return [
        unlike(entry.result[own]) if isinstance(entry, Candidate) and entry.result[own].degraded else entry
        for entry in candidates
    ]


def check_thresholds(dimensions: Sequence[Judgement], thresholds: Sequence[types.Threshold], own: str) -> None:
    """Raises ``InvalidArgument`` for a threshold that cannot be compared; ``own`` is the dimension to rank by.

    ``dimensions`` are those of the thresholds and of the ranking.
    """
    by_name = {entry.dimension.name: entry.dimension for entry in dimensions}
    for position, threshold in enumerate(thresholds):
        field = f"thresholds[{position}]"
        dimension = by_name[threshold.dimension or own]
        if not math.isfinite(threshold.at_least):
            raise InvalidArgument(f"{threshold.at_least} is no threshold; give a number", field=f"{field}.at_least")
        upper = TOP.get(threshold.scale)
        if upper is not None and not 0 <= threshold.at_least <= upper:
            raise InvalidArgument(
                f"{threshold.at_least:g} is outside 0..{upper:g}, the range of {threshold.scale} values",
                field=f"{field}.at_least",
            )
        lacks = "calibration" if threshold.scale == "calibrated" and dimension.calibration is None else ""
        lacks = "reference" if threshold.scale == "percentile" and dimension.reference is None else lacks
        if lacks:
            raise InvalidArgument(
                f"the model has no {lacks} for {dimension.name!r}, so there are no {threshold.scale} values to "
                "compare; use another scale",
                field=f"{field}.scale",
            )


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
