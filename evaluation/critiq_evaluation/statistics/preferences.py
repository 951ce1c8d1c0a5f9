"""Agreement with choices: of two pictures the better one, of several pictures of one prompt their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.statistics.arrays import Floats, paired


@dataclass(frozen=True)
class PairAccuracy:
    """How often a model prefers the picture that people prefer.

    Attributes:
        pairs: pairs judged.
        accuracy: share of them judged as people did, 0..1, a tie as half; ``None`` without pairs.
        strict: the same with a tie as wrong, as the preference models' own scripts count.
        ties: pairs with equal scores.
        low, high: Wilson's 95 % interval of ``accuracy``.
        reason: why there is no accuracy.
    """

    pairs: int
    accuracy: float | None
    strict: float | None = None
    ties: int = 0
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class RankingAccuracy:
    """How often a model orders the pictures of one prompt as people do.

    Attributes:
        groups: prompts with two or more pictures of different ratings.
        pairs: all pairs of pictures with different ratings within these; ``accuracy`` and ``strict`` are over them.
        top: share of prompts whose best-scored picture is one that people rate highest.
        tau_b: mean over prompts of Kendall's tau-b; prompts with constant scores count as 0.
    """

    groups: int
    pairs: int
    accuracy: float | None
    strict: float | None = None
    top: float | None = None
    tau_b: float | None = None
    reason: str = ""


def pair_accuracy(better: ArrayLike, worse: ArrayLike) -> PairAccuracy:
    """Accuracy over preference pairs.

    Args:
        better, worse: ``[count]``, scores (higher is better) of the picture that people prefer and of the other one.
    """
    first, second = paired(better, worse)
    bad = int((~np.isfinite(first) | ~np.isfinite(second)).sum())
    if bad:
        return PairAccuracy(first.size, None, reason=f"{bad} of {first.size} pairs have scores that are not finite")
    if not first.size:
        return PairAccuracy(0, None, reason="no pairs")
    right, ties = int((first > second).sum()), int((first == second).sum())
    accuracy = (right + ties / 2) / first.size
    interval = stats.binomtest(round(accuracy * first.size), first.size).proportion_ci(0.95, "wilson")
    return PairAccuracy(first.size, accuracy, right / first.size, ties, float(interval.low), float(interval.high))


def ranking_accuracy(scores: ArrayLike, ratings: ArrayLike, groups: Sequence[str]) -> RankingAccuracy:
    """Accuracy within groups of pictures, for instance those of one prompt.

    Args:
        scores, ratings: ``[count]``, higher is better.
        groups: the group of each picture.
    """
    x, y = paired(scores, ratings)
    if len(groups) != x.size:
        raise EvaluationError(f"{len(groups)} groups for {x.size} pictures; each picture needs one")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        return RankingAccuracy(0, 0, None, reason="some scores or ratings are not finite")
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    judged = [(x[chosen], y[chosen]) for chosen in members.values() if np.ptp(y[chosen]) > 0]
    if not judged:
        return RankingAccuracy(0, 0, None, reason="no group has two pictures with different ratings")
    counts = np.array([_pairs(*group) for group in judged])
    right, ties, pairs = counts.sum(axis=0)
    return RankingAccuracy(
        groups=len(judged),
        pairs=int(pairs),
        accuracy=float((right + ties / 2) / pairs),
        strict=float(right / pairs),
        top=float(np.mean([_top(*group) for group in judged])),
        tau_b=float(np.mean([_tau(*group) for group in judged])),
    )


def _pairs(x: Floats, y: Floats) -> tuple[int, int, int]:
    """Pairs in the right order, with equal scores, and all pairs with different ratings."""
    one, other = np.triu_indices(x.size, 1)
    scores, ratings = np.sign(x[one] - x[other]), np.sign(y[one] - y[other])
    due = ratings != 0
    return int((scores[due] == ratings[due]).sum()), int((scores[due] == 0).sum()), int(due.sum())


def _top(x: Floats, y: Floats) -> float:
    """1 if the best-scored picture is rated highest; of several best-scored ones, the share that is."""
    return float(np.mean(y[x == x.max()] == y.max()))


def _tau(x: Floats, y: Floats) -> float:
    return 0.0 if np.ptp(x) == 0 else float(stats.kendalltau(x, y).statistic)
