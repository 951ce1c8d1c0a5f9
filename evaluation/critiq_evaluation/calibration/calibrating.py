"""One calibration from labelled scores: which map, what it is worth, what changes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from scipy import stats

from critiq_evaluation.calibration.bundles import calibrated_values, calibration_of
from critiq_evaluation.calibration.curves import METHODS, Map, Method, fit_map
from critiq_evaluation.calibration.validation import (
    FEW_LABELS,
    Errors,
    LearningCurve,
    check_labels,
    choose,
    cross_validated,
    errors_of,
    held_out_predictions,
    learning_curve,
)
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.statistics.arrays import Floats
from critiq_server.bundles.manifest import Dimension


@dataclass(frozen=True)
class Result:
    """What was found. Scores and ratings are ``[count]``, higher is better; errors are in the unit asked for, which
    ``bounds`` are the ends of.

    Attributes:
        before: errors of the bundle's own calibration, taken as a share of the ratings' scale; ``None`` where it has
            none: raw values are on no scale that ratings could be compared with.
        methods: held-out errors by method; ``None`` where every fit failed.
        failures: why a method failed on all labels.
        held_out: what the chosen method says of each picture, fitted without it; NaN where that fit failed.
        srcc_before, srcc_after: of raw and of calibrated values as the server gives them, on all labels.
        tied: pictures whose calibrated value another has too, although their raw values differ.
        dimension: the bundle's, with the new calibration.
    """

    scores: Floats
    ratings: Floats
    bounds: tuple[float, float]
    method: Method
    fitted: Map
    before: Errors | None
    methods: dict[Method, Errors | None]
    failures: dict[Method, str]
    held_out: Floats
    learning: LearningCurve
    srcc_before: float
    srcc_after: float
    tied: int
    dimension: Dimension
    notes: tuple[str, ...]

    @property
    def after(self) -> Errors:
        """Held-out errors of the chosen method."""
        found = self.methods[self.method]
        assert found is not None  # noqa: S101 - a method without errors is not chosen
        return found


def calibrate(
    raw: Floats,
    ratings: Floats,
    dimension: Dimension,
    bounds: tuple[float, float],
    *,
    method: Method | None = None,
    to: Literal["mos", "0..1"] = "mos",
    folds: int = 5,
    repeats: int = 10,
    draws: int = 20,
    seed: int = 0,
) -> Result:
    """Fits raw values of a dimension to ratings.

    Args:
        raw: ``[count]``, as the model gives them.
        ratings: ``[count]``, higher is better, within ``bounds``.
        bounds: the ends of the ratings' scale, which become 0 and 1.
        to: the unit of errors and curves in the result: the ratings' own, or 0..1.
        method: ``None``: the simplest whose held-out error is within one standard deviation of the smallest.

    Raises:
        EvaluationError: the labels are too few, constant, not finite, outside their scale, or fall with the scores; or
            the fit failed.
    """
    low, high = bounds
    outside = np.flatnonzero((ratings < low) | (ratings > high))
    if outside.size:
        raise EvaluationError(
            f"{outside.size} ratings are outside the scale {low:g} to {high:g}, the first {ratings[outside[0]]:g}; "
            "give the ratings' own scale with --scale MIN:MAX"
        )
    stated = bounds
    if to == "0..1":
        ratings, low, high, bounds = (ratings - low) / (high - low), 0.0, 1.0, (0.0, 1.0)
    scores = raw if dimension.direction == "higher_is_better" else -raw
    check_labels(scores, ratings)
    methods: dict[Method, Errors | None] = {}
    failures: dict[Method, str] = {}
    for name in (method,) if method else METHODS:
        fitted = fit_map(scores, ratings, name, bounds)
        failures |= {name: fitted.reason} if fitted.state == "failed" else {}
        methods[name] = (
            None
            if fitted.state == "failed"
            else cross_validated(scores, ratings, name, bounds, folds=folds, repeats=repeats, seed=seed)
        )
    if method and method in failures:
        raise EvaluationError(f"fit: failed: {method}: {failures[method]}")
    chosen = choose(methods)
    fitted = fit_map(scores, ratings, chosen, bounds)
    calibration = calibration_of(fitted, dimension, bounds, stated, scores.size)
    after = dimension.model_copy(update={"calibration": calibration})
    old, new = calibrated_values(raw, dimension), calibrated_values(raw, after)
    assert new is not None  # noqa: S101 - it was just put in
    return Result(
        scores=scores,
        ratings=ratings,
        bounds=bounds,
        method=chosen,
        fitted=fitted,
        before=errors_of(low + (high - low) * old, ratings) if old is not None else None,
        methods=methods,
        failures=failures,
        held_out=held_out_predictions(scores, ratings, chosen, bounds, folds=folds, seed=seed),
        learning=learning_curve(scores, ratings, chosen, bounds, draws=draws, seed=seed),
        srcc_before=float(stats.spearmanr(scores, ratings).statistic),
        srcc_after=float(stats.spearmanr(new, ratings).statistic),
        tied=_tied(scores, new),
        dimension=after,
        notes=_notes_on(dimension) + _notes(scores, fitted.scores, methods[chosen], method is None, len(methods)),
    )


def _tied(scores: Floats, calibrated: Floats) -> int:
    """Pictures that the map puts level with one of another score."""
    _, first = np.unique(scores, return_index=True)
    values, counts = np.unique(calibrated[first], return_counts=True)
    return int(np.isin(calibrated, values[counts > 1]).sum())


def _notes(
    scores: Floats, ends: tuple[float, ...], errors: Errors | None, automatic: bool, tried: int
) -> tuple[str, ...]:
    notes = [f"raw values outside {ends[0]:.4g} to {ends[-1]:.4g} (higher is better) get the value of the nearest end"]
    if scores.size < FEW_LABELS:
        notes.append(f"only {scores.size} labels: read the spread, not the figures")
    if errors is not None and errors.failed:
        notes.append(f"{errors.failed} fits of the cross-validation failed and are left out of its errors")
    if automatic and tried > 1:
        notes.append("the method was chosen by the errors that are reported, which flatters them slightly")
    return tuple(notes)


def _notes_on(dimension: Dimension) -> tuple[str, ...]:
    notes = []
    if dimension.scope == "within_prompt":
        notes.append(
            "raw values of this dimension compare pictures of one prompt only; one map for all prompts hides that"
        )
    if dimension.fallback is not None:
        notes.append("the fallback head keeps its own calibration: degraded scores are not on the ratings' scale")
    return tuple(notes)


def as_json(result: Result) -> dict[str, Any]:
    """Every figure; ``null`` for what is not defined."""
    return {
        "dimension": result.dimension.name,
        "labels": int(result.scores.size),
        "scale": list(result.bounds),
        "method": result.method,
        "before": asdict(result.before) if result.before is not None else None,
        "after": asdict(result.after),
        "methods": {name: asdict(entry) if entry is not None else None for name, entry in result.methods.items()},
        "failures": result.failures,
        "srcc_before": result.srcc_before,
        "srcc_after": result.srcc_after,
        "tied": result.tied,
        "learning_curve": asdict(result.learning),
        "parameters": list(result.fitted.parameters),
        "sampling_error": result.fitted.sampling_error,
        "points": {
            "score": list(result.fitted.scores),
            "rating": list(result.fitted.ratings),
        },
        "notes": list(result.notes),
    }
