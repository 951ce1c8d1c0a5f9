"""Scores held against ratings: every figure of an evaluation, from which all tables and pictures are made."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from critiq_evaluation.datasets.types import Dataset, RatedPicture
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.pairing import PREFERENCE, Pair, pair_up
from critiq_evaluation.protocols import Part, Plan, by_group
from critiq_evaluation.scoring import Asked, ModelScores
from critiq_evaluation.statistics import (
    Agreement,
    Difference,
    FitName,
    Interval,
    PairAccuracy,
    RankingAccuracy,
    bootstrap_plcc,
    bootstrap_srcc,
    compare_srcc,
    holm,
    measure,
    pair_accuracy,
    ranking_accuracy,
)

FIGURES = ("srcc", "krcc", "tau_c", "plcc", "plcc_fitted", "rmse")


@dataclass(frozen=True)
class Row:
    """One model's agreement on one part of the dataset; ``missing`` pictures of the part have no score."""

    part: str
    agreement: Agreement
    missing: int
    srcc_interval: Interval | None = None
    plcc_interval: Interval | None = None


@dataclass(frozen=True)
class Spread:
    """A figure over repeated splits; ``count`` of them had one."""

    median: float
    deviation: float
    minimum: float
    maximum: float
    count: int


@dataclass(frozen=True)
class PlanResult:
    """``spread`` is by figure (see :data:`FIGURES`), over ``repeats``."""

    plan: Plan
    rows: tuple[Row, ...]
    repeats: tuple[Row, ...]
    spread: Mapping[str, Spread]


@dataclass(frozen=True)
class Point:
    """One picture: ``score`` is higher for better, ``rating`` too; both ranks are 0 (worst) .. 1 (best)."""

    image: str
    prompt: str
    score: float
    rating: float
    score_rank: float
    rating_rank: float


@dataclass(frozen=True)
class Comparison:
    """One dimension of one model against one rating.

    Attributes:
        model: ``NAME:VERSION``.
        negated, rating_negated: the model, or the dataset, says that lower is better, so these values were negated.
        whole: over all pictures with a score, whatever the protocol.
        ranking: within prompts of several pictures; ``None`` where there are none.
        groups: rows by group name, for instance ``generator``.
        failures: why pictures have no score.
    """

    model: str
    pair: Pair
    negated: bool
    rating_negated: bool
    within_prompt: bool
    whole: Row
    ranking: RankingAccuracy | None
    plans: tuple[PlanResult, ...]
    groups: Mapping[str, tuple[Row, ...]]
    points: tuple[Point, ...]
    failures: Mapping[str, str]

    @property
    def title(self) -> str:
        return f"{self.model} {self.pair.dimension}"


@dataclass(frozen=True)
class PreferenceResult:
    """One dimension of one model against preference pairs; ``missing`` pairs lack a score."""

    model: str
    dimension: str
    accuracy: PairAccuracy
    missing: int
    groups: Mapping[str, Mapping[str, PairAccuracy]]
    failures: Mapping[str, str]

    @property
    def title(self) -> str:
        return f"{self.model} {self.dimension}"


@dataclass(frozen=True)
class Versus:
    """Two comparisons with the same rating, on the pictures that both scored; ``adjusted`` is Holm's p-value."""

    rating: str
    first: str
    second: str
    count: int
    difference: Difference
    adjusted: float | None


@dataclass(frozen=True)
class Evaluation:
    """Everything that was found out."""

    dataset: Dataset
    fit: FitName
    comparisons: tuple[Comparison, ...]
    preferences: tuple[PreferenceResult, ...]
    versus: tuple[Versus, ...]


def judge(
    dataset: Dataset,
    scores: Sequence[ModelScores],
    plans: Sequence[Plan],
    *,
    mapping: Sequence[str] = (),
    fit: FitName = "logistic4",
    resamples: int = 1000,
    seed: int = 0,
) -> Evaluation:
    """Computes every figure.

    Args:
        plans: of :func:`critiq_evaluation.protocols.plan`.
        mapping: see :func:`critiq_evaluation.pairing.pair_up`.
        resamples: of the bootstrap and of the permutation test; 0: no intervals and no tests.

    Raises:
        EvaluationError: there is nothing to compare.
    """
    comparisons, preferences = [], []
    pairs = [(model, pair) for model in scores for pair in pair_up(model.model, dataset, mapping)]
    for model, pair in pairs:
        if pair.rating == PREFERENCE:
            preferences.append(_preferences(dataset, model, pair.dimension))
        else:
            comparisons.append(_Judge(dataset, model, pair, fit, resamples, seed).compare(plans))
    judged = [entry for entry in preferences if entry.accuracy.pairs]
    if not comparisons and not judged:
        failures = next((entry.failures for entry in preferences if entry.failures), {})
        why = next(iter(failures.values()), "the dataset is empty")
        raise EvaluationError(f"no picture of {dataset.name} was scored; the first error was: {why}")
    return Evaluation(
        dataset, fit, tuple(comparisons), tuple(judged), tuple(_versus(dataset, comparisons, resamples, seed))
    )


class _Judge:
    """One dimension of one model against one rating."""

    def __init__(
        self, dataset: Dataset, scores: ModelScores, pair: Pair, fit: FitName, resamples: int, seed: int
    ) -> None:
        self._dataset = dataset
        self._scores = scores
        self._pair = pair
        self._fit = fit
        self._resamples = resamples
        self._seed = seed
        values = scores.values(pair.dimension)
        asked = {picture.image: Asked(picture.image, picture.prompt) for picture in dataset.pictures}
        self._values = {image: values[one] for image, one in asked.items() if one in values}
        lower = not dataset.scales[pair.rating].higher_is_better
        self._ratings = {
            picture.image: -picture.ratings[pair.rating] if lower else picture.ratings[pair.rating]
            for picture in dataset.pictures
            if pair.rating in picture.ratings
        }
        self._contents = _contents(dataset)
        self._whole = self._row(Part("all", dataset.pictures), intervals=True)

    def compare(self, plans: Sequence[Plan]) -> Comparison:
        dimension = self._scores.dimension(self._pair.dimension)
        pictures = self._dataset.pictures
        failures = self._scores.failures(self._pair.dimension)
        asked = {Asked(picture.image, picture.prompt) for picture in pictures if picture.image in self._ratings}
        return Comparison(
            model=self._scores.name,
            pair=self._pair,
            negated=dimension.direction == "lower_is_better",
            rating_negated=not self._dataset.scales[self._pair.rating].higher_is_better,
            within_prompt=dimension.scope == "within_prompt",
            whole=self._whole,
            ranking=self._ranking(pictures),
            plans=tuple(self._apply(plan) for plan in plans),
            groups={name: tuple(self._row(part) for part in parts) for name, parts in by_group(self._dataset).items()},
            points=self._points(pictures),
            failures={one.image: why for one, why in failures.items() if one in asked},
        )

    def _apply(self, plan: Plan) -> PlanResult:
        repeats = tuple(self._row(part) for part in plan.repeats)
        spread = {}
        for name in FIGURES:
            found = [value for row in repeats if (value := getattr(row.agreement, name)) is not None]
            if found:
                spread[name] = Spread(float(np.median(found)), float(np.std(found)), min(found), max(found), len(found))
        return PlanResult(plan, tuple(self._part(part) for part in plan.parts), repeats, spread)

    def _part(self, part: Part) -> Row:
        if part.pictures is self._dataset.pictures:  # its intervals are known, and take seconds in large sets
            return replace(self._whole, part=part.name)
        return self._row(part, intervals=True)

    def _row(self, part: Part, *, intervals: bool = False) -> Row:
        images = [picture.image for picture in part.pictures if picture.image in self._ratings]
        scored = [image for image in images if image in self._values]
        x = np.array([self._values[image] for image in scored])
        y = np.array([self._ratings[image] for image in scored])
        agreement = measure(x, y, self._fit)
        row = Row(part.name, agreement, len(images) - len(scored))
        if not intervals or not self._resamples or agreement.srcc is None:
            return row
        contents = [self._contents[image] for image in scored]
        options: dict[str, Any] = {"contents": contents, "resamples": self._resamples, "seed": self._seed}
        fitted = agreement.fit(x) if agreement.fit.state == "ok" else None
        return Row(
            part.name,
            agreement,
            row.missing,
            bootstrap_srcc(x, y, **options),
            None if fitted is None else bootstrap_plcc(fitted, y, **options),
        )

    def _ranking(self, pictures: Sequence[RatedPicture]) -> RankingAccuracy | None:
        chosen = [picture for picture in pictures if picture.prompt and picture.image in self._values]
        chosen = [picture for picture in chosen if picture.image in self._ratings]
        found = ranking_accuracy(
            [self._values[picture.image] for picture in chosen],
            [self._ratings[picture.image] for picture in chosen],
            [picture.prompt for picture in chosen],
        )
        return found if found.groups else None

    def _points(self, pictures: Sequence[RatedPicture]) -> tuple[Point, ...]:
        chosen = [picture for picture in pictures if picture.image in self._values and picture.image in self._ratings]
        scores = [self._values[picture.image] for picture in chosen]
        ratings = [self._ratings[picture.image] for picture in chosen]
        ranks = zip(_relative_ranks(scores), _relative_ranks(ratings), strict=True)
        return tuple(
            Point(picture.image, picture.prompt, score, rating, *map(float, pair))
            for picture, score, rating, pair in zip(chosen, scores, ratings, ranks, strict=True)
        )


def _relative_ranks(values: Sequence[float]) -> NDArray[np.float64]:
    """Mean ranks, 0..1."""
    return np.asarray((rankdata(values) - 1) / max(1, len(values) - 1), np.float64)


def _preferences(dataset: Dataset, scores: ModelScores, dimension: str) -> PreferenceResult:
    values = scores.values(dimension)
    known = []
    for pair in dataset.preferences:
        better, worse = (values.get(Asked(image, pair.prompt)) for image in (pair.better, pair.worse))
        if better is not None and worse is not None:
            known.append((pair, better, worse))
    members: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for pair, better, worse in known:
        for name, value in pair.groups.items():
            members.setdefault(name, {}).setdefault(value, []).append((better, worse))
    return PreferenceResult(
        model=scores.name,
        dimension=dimension,
        accuracy=_accuracy([(better, worse) for _, better, worse in known]),
        missing=len(dataset.preferences) - len(known),
        groups={name: {value: _accuracy(kept) for value, kept in of.items()} for name, of in members.items()},
        failures={asked.image: why for asked, why in scores.failures(dimension).items()},
    )


def _accuracy(pairs: Sequence[tuple[float, float]]) -> PairAccuracy:
    return pair_accuracy([better for better, _ in pairs], [worse for _, worse in pairs])


def _contents(dataset: Dataset) -> dict[str, str]:
    """What each picture shows: its reference, else its prompt, else itself."""
    return {
        picture.image: picture.groups.get("reference") or picture.prompt or picture.image
        for picture in dataset.pictures
    }


def _versus(dataset: Dataset, comparisons: Sequence[Comparison], resamples: int, seed: int) -> list[Versus]:
    if not resamples:
        return []
    contents = _contents(dataset)
    found = []
    for first, second in itertools.combinations(comparisons, 2):
        if first.pair.rating != second.pair.rating:
            continue
        one = {point.image: point for point in first.points}
        other = {point.image: point for point in second.points}
        shared = [image for image in one if image in other]
        difference = compare_srcc(
            [one[image].score for image in shared],
            [other[image].score for image in shared],
            [one[image].rating for image in shared],
            contents=[contents[image] for image in shared],
            resamples=resamples,
            seed=seed,
        )
        found.append(Versus(first.pair.rating, first.title, second.title, len(shared), difference, None))
    tested = [entry.difference.p_value for entry in found if entry.difference.p_value is not None]
    adjusted = iter(holm(tested))
    return [entry if entry.difference.p_value is None else replace(entry, adjusted=next(adjusted)) for entry in found]
