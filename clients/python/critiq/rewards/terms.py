"""What a reward is made of: terms, each one dimension of one model with a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from critiq.errors import CritiqError, FailedPrecondition, FeaturesMissing, InvalidArgument
from critiq.types import Score

Scale = Literal["calibrated", "percentile", "raw"]
"""``calibrated``: 0..1; ``percentile``: 0..100; ``raw``: the model's own, negated where lower is better."""


@dataclass(frozen=True, slots=True)
class Term:
    """One dimension of one model; ``name`` is what its component is called (default: model/dimension, as given)."""

    dimension: str
    weight: float = 1.0
    model: str = ""
    version: str = ""
    scale: Scale = "calibrated"
    name: str = ""

    def __post_init__(self) -> None:
        if not self.dimension:
            raise InvalidArgument("a term needs a dimension, for instance visual_quality", field="dimension")
        if not math.isfinite(self.weight):
            raise InvalidArgument(f"the weight of {self.dimension!r} is {self.weight}", field="weight")
        if self.scale not in get_args(Scale):
            raise InvalidArgument(f"{self.scale!r}; known are {list(get_args(Scale))}", field="scale")

    @property
    def label(self) -> str:
        return self.name or (f"{self.model}/{self.dimension}" if self.model else self.dimension)

    def value(self, score: Score, *, allow_degraded: bool) -> float | CritiqError:
        """The component, larger always better; an error where there is none that compares with others."""
        if score.degraded and (not allow_degraded or self.scale == "raw"):
            return FeaturesMissing(
                f"the score for {score.dimension!r} is degraded and does not compare with full ones: "
                f"{score.degraded_reason}"
            )
        if self.scale == "raw":
            return score.raw if score.direction == "higher_is_better" else -score.raw
        value = score.calibrated if self.scale == "calibrated" else score.percentile
        if value is None:
            return FailedPrecondition(
                f"model {score.model!r} gives {score.dimension!r} no {self.scale} value; use scale='raw'", field="scale"
            )
        return value


Terms = str | Mapping[str, float] | Iterable[Term]
"""``"visual_quality"``, ``"visual_quality:0.5,alignment:1"``, ``{"visual_quality": 0.5, "alignment": 1.0}`` or
:class:`Term` objects. A name is ``dimension`` or ``model/dimension``."""


def as_terms(terms: Terms, scale: Scale = "calibrated") -> tuple[Term, ...]:
    """Raises :class:`~critiq.errors.InvalidArgument` for no terms, weights that are no numbers, labels used twice."""
    if isinstance(terms, str):
        found = [_from_text(entry, scale) for entry in terms.split(",")]
    elif isinstance(terms, Mapping):
        found = [_named(name, weight, scale) for name, weight in terms.items()]
    else:
        found = list(terms)
    labels = [term.label for term in found]
    twice = next((label for label in labels if labels.count(label) > 1), None)
    if twice is not None:
        raise InvalidArgument(f"two terms are called {twice!r}; give one a name", field="terms")
    if not found:
        raise InvalidArgument("a reward needs at least one term", field="terms")
    return tuple(found)


def _from_text(entry: str, scale: Scale) -> Term:
    name, colon, weight = entry.strip().rpartition(":")
    if not colon:
        return _named(entry.strip(), 1.0, scale)
    try:
        return _named(name, float(weight), scale)
    except ValueError as error:
        raise InvalidArgument(f"{entry.strip()!r} is not of the form NAME:WEIGHT", field="terms") from error


def _named(name: str, weight: float, scale: Scale) -> Term:
    model, _, dimension = name.rpartition("/")
    return Term(dimension, weight, model, scale=scale)
