"""Which dimension of a model is compared with which rating of a dataset: as told, else by name, and always stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from critiq.types import Model
from critiq_evaluation.datasets.types import Dataset
from critiq_evaluation.errors import EvaluationError

PREFERENCE = "preference"
"""What a dimension is mapped to for preference pairs, which have no rating."""

_ALSO_CALLED = {
    "quality": ("visual_quality", "perception", "technical"),
    "mos": ("overall", "quality", "visual_quality"),
    "overall": ("mos", "quality", "visual_quality"),
    "alignment": ("correspondence",),
    "correspondence": ("alignment",),
}
"""Dimensions that judge what a rating names, by rating, the nearest first."""


@dataclass(frozen=True)
class Pair:
    """``rating`` is one of the dataset's scales, or :data:`PREFERENCE`; ``why`` is for the report."""

    dimension: str
    rating: str
    why: str


def pair_up(model: Model, dataset: Dataset, wanted: Sequence[str] = ()) -> list[Pair]:
    """The pairs to compare.

    Args:
        wanted: ``DIMENSION=RATING`` each; those whose dimension this model has not are another model's.

    Raises:
        EvaluationError: a pair is not of that form, names a rating that the dataset has not, or nothing is left to
            compare; the message lists what there is.
    """
    known = [dimension.name for dimension in model.dimensions]
    ratings = [*dataset.scales] if dataset.pictures else []
    ratings += [PREFERENCE] if dataset.preferences else []
    pairs = _told(wanted, known, ratings) if wanted else _by_name(known, ratings)
    if not pairs:
        raise EvaluationError(
            f"nothing to compare: the model {model.name} has {', '.join(known)}, the dataset {dataset.name} has "
            f"{', '.join(ratings) or 'no ratings'}; say which is which with --map DIMENSION=RATING"
        )
    return pairs


def _told(wanted: Sequence[str], known: Sequence[str], ratings: Sequence[str]) -> list[Pair]:
    pairs = []
    for entry in wanted:
        dimension, equals, rating = entry.partition("=")
        if not (dimension and equals and rating):
            raise EvaluationError(f"--map {entry!r} is not of the form DIMENSION=RATING")
        if rating not in ratings:
            raise EvaluationError(f"--map {entry!r}: the dataset has no rating {rating!r}; it has {', '.join(ratings)}")
        if dimension in known:
            pairs.append(Pair(dimension, rating, "as told"))
    return pairs


def _by_name(known: Sequence[str], ratings: Sequence[str]) -> list[Pair]:
    pairs = []
    for rating in ratings:
        if rating == PREFERENCE:
            pairs += [Pair(dimension, rating, "every dimension is held against preferences") for dimension in known]
        elif rating in known:
            pairs.append(Pair(rating, rating, "they have the same name"))
        elif also := [name for name in _ALSO_CALLED.get(rating, ()) if name in known]:
            pairs.append(Pair(also[0], rating, f"{also[0]} is the model's nearest to {rating}; --map says otherwise"))
    if not pairs and len(known) == 1 and ratings:
        pairs.append(Pair(known[0], ratings[0], "the model's only dimension, the dataset's first rating"))
    return pairs
