"""How far models agree with each other on pictures that nobody rated: what one reads before one switches models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats

from critiq.types import Dimension
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.scoring import Asked, ModelScores
from critiq_evaluation.statistics import Interval, bootstrap_srcc
from critiq_evaluation.statistics.arrays import why_undefined


@dataclass(frozen=True)
class Series:
    """What one model says of one dimension; ``values`` are raw and turned so that higher is better.

    ``missing`` says why pictures have no value.
    """

    model: str
    dimension: str
    values: Mapping[Asked, float]
    missing: Mapping[Asked, str]
    within_prompt: bool = False
    """Whether its scores compare only between pictures of one prompt."""

    @property
    def title(self) -> str:
        return f"{self.model} {self.dimension}"


@dataclass(frozen=True)
class Disagreement:
    """A picture with its ranks by both, 0 (worst) to 1 (best) among the pictures that both scored; ties share one."""

    image: str
    first: float
    second: float


@dataclass(frozen=True)
class Pair:
    """Two series on the ``count`` pictures that both scored. ``srcc`` is ``None`` where not defined: ``reason``.

    ``apart`` has all of these pictures, those whose ranks differ most first.
    """

    first: Series
    second: Series
    count: int
    srcc: float | None
    interval: Interval | None
    apart: tuple[Disagreement, ...]
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AgreementOfModels:
    """``pictures`` is how many were asked for; ``left_out`` are dimensions that need prompts, where none has one."""

    pictures: int
    series: tuple[Series, ...]
    pairs: tuple[Pair, ...]
    left_out: tuple[str, ...] = ()

    def srcc(self, first: int, second: int) -> float | None:
        """Of two series by their places; 1 of a series with itself."""
        if first == second:
            return 1.0
        wanted = (self.series[min(first, second)].title, self.series[max(first, second)].title)
        return next(pair.srcc for pair in self.pairs if (pair.first.title, pair.second.title) == wanted)

    def least_agreeing(self) -> list[Pair]:
        """Pairs with a correlation, the lowest first; of one dimension before those of two.

        Two dimensions of one model count only where there is no pair of different models.
        """
        defined = [pair for pair in self.pairs if pair.srcc is not None]
        across = [pair for pair in defined if pair.first.model != pair.second.model]
        return sorted(across or defined, key=lambda pair: (pair.first.dimension != pair.second.dimension, pair.srcc))


def series_of(scores: Sequence[ModelScores], dimensions: Sequence[str] = ()) -> list[Series]:
    """A series for each dimension of each model; with ``dimensions`` only those.

    Dimensions that need a prompt are left out where no picture has one.

    Raises:
        EvaluationError: no model has one of ``dimensions``, or fewer than two series are left.
    """
    known = list(dict.fromkeys(dimension.name for found in scores for dimension in found.model.dimensions))
    for name in dimensions:
        if name not in known:
            raise EvaluationError(f"no model has a dimension {name!r}; there is {', '.join(known)}")
    series = [
        Series(
            found.name,
            dimension.name,
            found.values(dimension.name),
            found.failures(dimension.name),
            dimension.scope == "within_prompt",
        )
        for found in scores
        for dimension in found.model.dimensions
        if (not dimensions or dimension.name in dimensions) and _can_be_scored(found, dimension)
    ]
    if len(series) < 2:
        what = f"{series[0].title} alone" if series else "nothing"
        raise EvaluationError(
            f"{what} has no agreement; give two models, or a model with two dimensions "
            "(those that need prompts count only with --prompts)"
        )
    return series


def agreement(
    scores: Sequence[ModelScores], dimensions: Sequence[str] = (), *, resamples: int = 1000, seed: int = 0
) -> AgreementOfModels:
    """Every two series against each other, on the pictures that both scored.

    Args:
        scores: of the same pictures by each model.
        dimensions: only these; default: all.
        resamples: of the bootstrap for the 95 % intervals; 0: none. Pictures of one prompt are drawn together.

    Raises:
        EvaluationError: as :func:`series_of`.
    """
    series = series_of(scores, dimensions)
    pictures = len({asked for found in scores for asked in found.outcomes})
    pairs = tuple(_pair(first, second, resamples, seed) for first, second in combinations(series, 2))
    left_out = tuple(
        f"{found.name} {dimension.name}"
        for found in scores
        for dimension in found.model.dimensions
        if (not dimensions or dimension.name in dimensions) and not _can_be_scored(found, dimension)
    )
    return AgreementOfModels(pictures, tuple(series), pairs, left_out)


def _can_be_scored(found: ModelScores, dimension: Dimension) -> bool:
    return not dimension.needs_prompt or any(asked.prompt for asked in found.outcomes)


def _pair(first: Series, second: Series, resamples: int, seed: int) -> Pair:
    shared = [asked for asked in first.values if asked in second.values]
    x = np.array([first.values[asked] for asked in shared])
    y = np.array([second.values[asked] for asked in shared])
    notes = _notes(first, second, shared)
    reason = why_undefined(x, y)
    if reason:
        return Pair(first, second, len(shared), None, None, (), reason.replace("ratings", "other scores"), notes)
    # A picture without a prompt is a content of its own.
    contents = [asked.prompt or f"\0{place}" for place, asked in enumerate(shared)]
    interval = bootstrap_srcc(x, y, contents=contents, resamples=resamples, seed=seed) if resamples else None
    ranks = [(stats.rankdata(values) - 1) / (len(shared) - 1) for values in (x, y)]
    apart = [
        Disagreement(asked.image, float(one), float(other)) for asked, one, other in zip(shared, *ranks, strict=True)
    ]
    apart.sort(key=lambda found: (-abs(found.first - found.second), found.image))
    return Pair(first, second, len(shared), float(stats.spearmanr(x, y).statistic), interval, tuple(apart), "", notes)


def _notes(first: Series, second: Series, shared: Sequence[Asked]) -> tuple[str, ...]:
    prompts = {asked.prompt for asked in shared}
    return tuple(
        f"scores of {series.title} compare within one prompt only, and these pictures have {len(prompts)}"
        for series in (first, second)
        if series.within_prompt and len(prompts) > 1
    )
