"""Models' answers without a server, to judge and report on."""

from __future__ import annotations

from collections.abc import Mapping

import critiq
from critiq.types import Dimension, Direction, Licence
from critiq_evaluation.score_cache import CachedScore
from critiq_evaluation.scoring import Asked, ModelScores, Outcome


def dimension(name: str, direction: Direction = "higher_is_better", *, within_prompt: bool = False) -> Dimension:
    scope = "within_prompt" if within_prompt else "absolute"
    return Dimension(name, name, name, None, None, direction, scope, needs_prompt=False, tolerance=1e-5)


def model(name: str, *dimensions: Dimension) -> critiq.Model:
    licence = Licence("Apache-2.0", "Apache-2.0", "")
    return critiq.Model(name, "1", "test", name, "", "ready", "", False, dimensions, (), licence)


def scores(
    of: critiq.Model, values: Mapping[Asked, Mapping[str, float]], errors: Mapping[Asked, str] | None = None
) -> ModelScores:
    """``values`` are raw scores by picture and dimension; pictures in ``errors`` failed."""
    outcomes = {
        asked: Outcome({name: CachedScore(value, None) for name, value in found.items()})
        for asked, found in values.items()
    }
    return ModelScores(of, outcomes | {asked: Outcome({}, error) for asked, error in (errors or {}).items()})
