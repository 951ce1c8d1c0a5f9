"""Where to cut: thresholds from pictures that people accepted or rejected, with what they cost and how sure they are.

A picture passes if its value is at or above the threshold. Precision is the share of the passing pictures that people
accept, recall the share of the accepted ones that pass, the pass rate the share of all that pass.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.statistics.arrays import Floats

Bools = NDArray[np.bool_]
Integers = NDArray[np.int64]

MIN_LABELS = 10
FEW_OF_A_CLASS = 30
RESAMPLES = 1000


@dataclass(frozen=True)
class Goal:
    """What the threshold is for.

    Attributes:
        kind: ``precision``: the lowest threshold at which precision is at least ``target``; ``pass_rate``: the one
            whose pass rate is nearest to ``target``; ``cost``: the one that costs least.
        false_accept, false_reject: what it costs to pass a picture that people reject, and to stop one that they
            accept, in any unit.
    """

    kind: Literal["precision", "pass_rate", "cost"]
    target: float = 0.0
    false_accept: float = 1.0
    false_reject: float = 1.0


@dataclass(frozen=True)
class Curves:
    """Figures at every cut that the values allow, from the one that passes all pictures to the one that passes least.

    Each array is ``[cuts]``. ``thresholds`` is between two neighbouring values, in as few digits as tell them apart;
    ``cost`` is per picture, in the goal's unit.
    """

    thresholds: Floats
    precision: Floats
    recall: Floats
    pass_rate: Floats
    cost: Floats
    passing: Integers


@dataclass(frozen=True)
class Range:
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True)
class Threshold:
    """What was chosen.

    Attributes:
        recall: ``None`` where people accepted nothing.
        cost_of_all: per picture, if all of them pass; ``cost_of_none`` if none does.
        intervals: of the threshold, which each bootstrap resample chooses anew, and of the cost at the one that was
            chosen, over the resamples; of precision, recall and pass_rate at that one: Wilson's (1927) of a proportion.
        expected: precision, recall, pass_rate and cost to be expected of new pictures: those on the labels, less what
            choosing by the same labels flatters (the bootstrap's estimate of optimism: Efron 1983).
        unreachable: share of the resamples in which no threshold reaches the goal.
    """

    goal: Goal
    value: float
    precision: float
    recall: float | None
    pass_rate: float
    cost: float
    cost_of_all: float
    cost_of_none: float
    pictures: int
    accepted: int
    passing: int
    intervals: dict[str, Range]
    expected: dict[str, float]
    unreachable: float
    notes: tuple[str, ...]


def curves(values: Floats, accepted: Bools, goal: Goal) -> Curves:
    """All cuts. ``values`` are ``[count]``, higher is better, ``accepted`` what people said."""
    order, starts, thresholds = _cuts(values)
    return _figures(np.ones(values.size), accepted[order], starts, thresholds, goal)


def find_threshold(
    values: Floats, accepted: Bools, goal: Goal, *, resamples: int = RESAMPLES, seed: int = 0
) -> Threshold:
    """The threshold for a goal.

    Args:
        values: ``[count]``, higher is better, finite.
        accepted: ``[count]``.
        resamples: of the bootstrap; 0: no intervals.

    Raises:
        EvaluationError: too few pictures, values that are constant or not finite, one class only where the goal needs
            both, a precision that no threshold reaches, or a cost that is least where all or no pictures pass.
    """
    _check(values, accepted, goal)
    order, starts, thresholds = _cuts(values)
    said = accepted[order]
    found = _figures(np.ones(values.size), said, starts, thresholds, goal)
    at = _choose(found, goal)
    if at is None:
        raise EvaluationError(_why_not(found, goal))
    if goal.kind == "cost":
        _check_gain(found, at, said, goal)
    intervals, expected, unreachable = _bootstrap(said, starts, found, at, goal, resamples, seed)
    good, passing = int(said[starts[at] :].sum()), int(found.passing[at])
    counts = {"precision": (good, passing), "recall": (good, int(accepted.sum())), "pass_rate": (passing, values.size)}
    intervals |= {name: _wilson(*pair) for name, pair in counts.items() if pair[1]}
    chosen = Threshold(
        goal=goal,
        value=float(found.thresholds[at]),
        precision=float(found.precision[at]),
        recall=float(found.recall[at]) if accepted.any() else None,
        pass_rate=float(found.pass_rate[at]),
        cost=float(found.cost[at]),
        cost_of_all=float(goal.false_accept * np.mean(~accepted)),
        cost_of_none=float(goal.false_reject * np.mean(accepted)),
        pictures=values.size,
        accepted=int(accepted.sum()),
        passing=passing,
        intervals=intervals,
        expected=expected,
        unreachable=unreachable,
        notes=(),
    )
    return _with_notes(chosen)


def turned_back(chosen: Threshold, found: Curves) -> tuple[Threshold, Curves]:
    """Thresholds on values of which lower ones are better, where :func:`find_threshold` was given them negated."""
    intervals = dict(chosen.intervals)
    if "threshold" in intervals:
        intervals["threshold"] = Range(-intervals["threshold"].high, -intervals["threshold"].low)
    return replace(chosen, value=-chosen.value, intervals=intervals), replace(found, thresholds=-found.thresholds)


def as_json(chosen: Threshold, found: Curves) -> dict[str, Any]:
    """Every figure; ``null`` for what is not defined."""
    lines = {
        name: [value if np.isfinite(value) else None for value in values.tolist()]
        for name, values in vars(found).items()
    }
    return {**asdict(chosen), "notes": list(chosen.notes), "curves": lines}


def _check(values: Floats, accepted: Bools, goal: Goal) -> None:
    if values.size < MIN_LABELS:
        raise EvaluationError(f"{values.size} labelled pictures with a value; a threshold needs {MIN_LABELS} or more")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise EvaluationError(f"{bad.size} values are not finite; leave those pictures out")
    if np.ptp(values) == 0:
        raise EvaluationError(f"all {values.size} values are {values[0]:g}; no threshold tells them apart")
    if goal.kind != "pass_rate" and accepted.all() == accepted.any():
        which = "accepted" if accepted.all() else "rejected"
        raise EvaluationError(
            f"all {values.size} pictures are {which}; a threshold for {goal.kind} needs both. --pass-rate does without"
        )


def _cuts(values: Floats) -> tuple[Integers, Integers, Floats]:
    """Order of rising values, where each distinct value starts in it, and the threshold below each."""
    order = np.argsort(values, kind="stable")
    rising = values[order]
    starts = np.flatnonzero(np.r_[True, np.diff(rising) > 0])
    levels = rising[starts]
    thresholds = [float(levels[0]), *(_between(low, high) for low, high in pairwise(levels))]
    return order, starts, np.array(thresholds)


def _between(low: float, high: float) -> float:
    """The number of fewest decimals that is above ``low`` and at most ``high``, near their middle."""
    middle = low + (high - low) / 2
    for digits in range(17):
        short = round(float(middle), digits)
        if low < short <= high:
            return short
    return float(high)


def _figures(weights: Floats, accepted: Bools, starts: Integers, thresholds: Floats, goal: Goal) -> Curves:
    """Figures where the picture at each place of the order counts ``weights`` times; NaN where nothing passes."""
    passing = np.cumsum(weights[::-1])[::-1][starts]
    good = np.cumsum((weights * accepted)[::-1])[::-1][starts]
    total, all_good = weights.sum(), float((weights * accepted).sum())
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = good / passing, good / all_good
    wrong = goal.false_accept * (passing - good) + goal.false_reject * (all_good - good)
    return Curves(thresholds, precision, recall, passing / total, wrong / total, passing.astype(np.int64))


def _choose(found: Curves, goal: Goal) -> int | None:
    if goal.kind == "precision":
        enough = np.flatnonzero(found.precision >= goal.target - 1e-12)
        return int(enough[0]) if enough.size else None
    if goal.kind == "pass_rate":
        return int(np.argmin(np.abs(found.pass_rate - goal.target)))
    return int(np.argmin(found.cost))


def _why_not(found: Curves, goal: Goal) -> str:
    best = int(np.nanargmax(found.precision))
    return (
        f"no threshold reaches a precision of {goal.target:g}: the best is {found.precision[best]:.4g}, at "
        f"{found.thresholds[best]:g}, where {found.passing[best]} pictures pass (recall {found.recall[best]:.4g}). "
        "Ask for less, or use a dimension that agrees better with these labels"
    )


def _check_gain(found: Curves, at: int, accepted: Bools, goal: Goal) -> None:
    none = goal.false_reject * float(np.mean(accepted))
    if found.cost[at] < none and at > 0:
        return
    what = "pass every picture" if found.cost[at] < none else "stop every picture"
    raise EvaluationError(
        f"with a false accept at {goal.false_accept:g} and a false reject at {goal.false_reject:g} it is cheapest to "
        f"{what} ({min(none, float(found.cost[at])):.4g} a picture): no threshold on these values gains anything"
    )


def _bootstrap(
    accepted: Bools, starts: Integers, whole: Curves, at: int, goal: Goal, resamples: int, seed: int
) -> tuple[dict[str, Range], dict[str, float], float]:
    """Pictures are drawn again, with replacement; a resample is how often each was drawn.

    What choosing flatters is how much better a resample's threshold looks on the resample than on all pictures.
    """
    rng = np.random.default_rng(seed)
    rows, flattery, missed = [], [], 0
    for _ in range(resamples):
        weights = np.bincount(rng.integers(0, accepted.size, accepted.size), minlength=accepted.size).astype(np.float64)
        found = _figures(weights, accepted, starts, whole.thresholds, goal)
        again = _choose(found, goal)
        if again is None:
            missed += 1
            continue
        rows.append([float(whole.thresholds[again]), float(found.cost[at])])
        flattery.append(_row(found, again) - _row(whole, again))
    if not rows:
        return {}, {}, missed / resamples if resamples else 0.0
    low, high = np.percentile(np.array(rows), [2.5, 97.5], axis=0)
    intervals = {name: Range(float(low[place]), float(high[place])) for place, name in enumerate(("threshold", "cost"))}
    corrected = _row(whole, at) - np.mean(flattery, axis=0)
    expected = {
        name: float(max(value, 0.0) if name == "cost" else np.clip(value, 0.0, 1.0))
        for name, value in zip(_NAMES, corrected, strict=True)
        if np.isfinite(value)
    }
    return intervals, expected, missed / resamples


_NAMES = ("precision", "recall", "pass_rate", "cost")


def _wilson(count: int, of: int) -> Range:
    found = stats.binomtest(count, of).proportion_ci(0.95, method="wilson")
    return Range(float(found.low), float(found.high))


def _row(found: Curves, at: int) -> Floats:
    return np.array([getattr(found, name)[at] for name in _NAMES])


def _with_notes(chosen: Threshold) -> Threshold:
    notes = []
    rejected = chosen.pictures - chosen.accepted
    for count, name in ((chosen.accepted, "accepted"), (rejected, "rejected")):
        if count < FEW_OF_A_CLASS:
            notes.append(f"only {count} {name} pictures: read the intervals, not the figures")
    if not chosen.accepted or not rejected:
        notes.append("all labels are of one kind: precision and recall say nothing of this threshold")
    goal = chosen.goal
    if goal.kind == "precision":
        expected = chosen.expected.get("precision")
        if expected is not None and expected < goal.target:
            notes.append(
                f"on new pictures a precision of {expected:.3f} is to be expected, below {goal.target:g}: ask for more "
                "to be surer"
            )
        if chosen.unreachable > 0.05:
            share = f"{100 * chosen.unreachable:.0f} %"
            notes.append(f"{share} of the resamples reach no such precision: it hangs on few pictures")
    if goal.kind == "pass_rate" and abs(chosen.pass_rate - goal.target) > 0.01:
        notes.append(f"ties allow no pass rate nearer to {goal.target:g} than {chosen.pass_rate:.4g}")
    return replace(chosen, notes=tuple(notes))
