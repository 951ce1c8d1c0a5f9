"""How far a shadow's scores agree with those that callers got: streaming statistics, in bounded memory."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from critiq.aliases import (
    Alias,
    AliasTarget,
    ShadowDecisions,
    ShadowDimension,
    ShadowFlip,
    ShadowPair,
    ShadowReport,
)
from critiq.types import Processes, Scale, Score, ScoreResult
from critiq_server.routing.table import DEFAULT
from critiq_server.scoring.policies import Policy, decide, value_on

_FORM = 1
"""Another one where :meth:`Agreement.dump` gives something else: processes are replaced one after the other."""
_COUNTS = ("scored", "dropped", "failed")
_MOST_PAIRS = 16
"""Versions that serve one alias; several only while an alias has several targets."""


class Agreement:
    """What one alias's shadow was found to score, since the alias was changed last.

    Args:
        alias: with its shadow.
        policies: those that could decide about the alias are tried on both results.
        thresholds: calibrated values by dimension; both results are held against them too.
        window: pictures over which rank correlation is taken.
    """

    def __init__(self, alias: Alias, policies: Iterable[Policy], thresholds: Mapping[str, float], window: int) -> None:
        if alias.shadow is None:
            raise ValueError(f"the alias {alias.name!r} has no shadow")
        self._alias = alias
        self.alias = alias.name
        self.candidate: AliasTarget = alias.shadow
        called = {alias.name, ""} if alias.name == DEFAULT else {alias.name}
        self._policies = tuple(policies)
        self._called = called
        self._thresholds = thresholds
        self._window = window
        self._pairs: dict[tuple[str, str], _Pair] = {}
        self.scored = self.dropped = self.failed = 0
        self.last_failure = ""

    def add(self, served: ScoreResult, candidate: ScoreResult) -> None:
        """Takes note of the scores of one picture by both; the candidate's are of no more dimensions."""
        key = (served.scores[0].model, served.scores[0].model_version)
        pair = self._pairs.get(key)
        if pair is None:
            if len(self._pairs) >= _MOST_PAIRS:
                return
            pair = self._pairs[key] = _Pair()
        self.scored += 1
        pair.scored += 1
        ours = {score.dimension: score for score in served}
        for score in candidate:
            self._add_scores(pair, ours[score.dimension], score)
        theirs = {score.dimension: score for score in candidate}
        for policy in self._policies:
            about = policy.model in self._called or policy.model == key[0]
            if about and policy.model_version in ("", key[1]) and _feeds(policy, ours) and _feeds(policy, theirs):
                rule = f"policy {policy.name} {policy.version}"
                pair.decide(rule, decide(policy, served).decision, decide(policy, candidate).decision)

    def report(self) -> ShadowReport:
        """What is known now. May be called from any thread: copies are made of whatever may grow meanwhile."""
        pairs = tuple(
            ShadowPair(
                AliasTarget(model, version, 0.0),
                pair.scored,
                tuple(entry.report() for entry in tuple(pair.dimensions.values())),
                tuple(entry.report() for entry in tuple(pair.decisions.values())),
            )
            for (model, version), pair in tuple(self._pairs.items())
        )
        return ShadowReport(
            self.alias,
            self.candidate,
            self._alias.route.since,
            self.scored,
            self.dropped,
            self.failed,
            self.last_failure,
            pairs,
        )

    def dump(self) -> dict[str, Any]:
        """All that :meth:`with_others` of another process needs, as JSON."""
        return {
            "about": self._about(),
            **{name: getattr(self, name) for name in _COUNTS},
            "last_failure": self.last_failure,
            "pairs": [[*versions, pair.dump()] for versions, pair in self._pairs.items()],
        }

    def fitting(self, dumped: Any) -> Any:
        """``None`` for what is about another candidate, or from before or after a change of the alias."""
        return dumped if dumped.get("about") == self._about() else None

    def with_others(self, dumps: Iterable[Mapping[str, Any]], processes: Processes) -> ShadowReport:
        """What is known here and in other processes, whose dumps are fitting."""
        joined = Agreement(self._alias, (), {}, self._window)
        for dumped in (self.dump(), *dumps):
            joined._absorb(dumped)
        return replace(joined.report(), processes=processes)

    def _about(self) -> list[Any]:
        return [_FORM, str(self.candidate), self.candidate.percent, self._alias.route.since]

    def _absorb(self, dumped: Mapping[str, Any]) -> None:
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + dumped[name])
        self.last_failure = self.last_failure or dumped["last_failure"]
        for model, version, found in dumped["pairs"]:
            self._pairs.setdefault((model, version), _Pair()).absorb(found, self._window)

    def _add_scores(self, pair: _Pair, ours: Score, theirs: Score) -> None:
        """What is degraded is of another scale and compares with nothing."""
        if ours.degraded or theirs.degraded:
            return
        name = ours.dimension
        if ours.calibrated is None or theirs.calibrated is None:
            pair.compare(name, "raw", self._window, ours.raw, theirs.raw)
            return
        pair.compare(name, "calibrated", self._window, ours.calibrated, theirs.calibrated)
        threshold = self._thresholds.get(name)
        if threshold is not None:
            sides = ["reached" if value >= threshold else "missed" for value in (ours.calibrated, theirs.calibrated)]
            pair.decide(f"{name} >= {threshold:g}", *sides)


@dataclass
class _Pair:
    """One version that served, and the candidate."""

    scored: int = 0
    dimensions: dict[tuple[str, Scale], _Compared] = field(default_factory=dict)
    decisions: dict[str, _Decided] = field(default_factory=dict)

    def compare(self, dimension: str, scale: Scale, window: int, served: float, candidate: float) -> None:
        self._compared(dimension, scale, window).add(served, candidate)

    def decide(self, rule: str, served: str, candidate: str) -> None:
        self._decided(rule).counts[served, candidate] += 1

    def dump(self) -> dict[str, Any]:
        return {
            "scored": self.scored,
            "dimensions": [entry.dump() for entry in self.dimensions.values()],
            "decisions": [
                [entry.rule, *sides, n] for entry in self.decisions.values() for sides, n in entry.counts.items()
            ],
        }

    def absorb(self, dumped: Mapping[str, Any], window: int) -> None:
        self.scored += dumped["scored"]
        for entry in dumped["dimensions"]:
            self._compared(entry["dimension"], entry["scale"], window).absorb(entry)
        for rule, served, candidate, count in dumped["decisions"]:
            self._decided(rule).counts[served, candidate] += count

    def _compared(self, dimension: str, scale: Scale, window: int) -> _Compared:
        entry = self.dimensions.get((dimension, scale))
        if entry is None:
            entry = self.dimensions[dimension, scale] = _Compared(dimension, scale, deque(maxlen=window))
        return entry

    def _decided(self, rule: str) -> _Decided:
        entry = self.decisions.get(rule)
        if entry is None:
            entry = self.decisions[rule] = _Decided(rule)
        return entry


@dataclass
class _Compared:
    """One dimension's scores: means over all pictures, rank correlation over the last ones."""

    dimension: str
    scale: Scale
    recent: deque[tuple[float, float, float]]
    """When (by a clock that all processes of a machine share), served, candidate."""
    count: int = 0
    served_mean: float = 0.0
    candidate_mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations of the differences from their mean (Welford)."""

    def add(self, served: float, candidate: float) -> None:
        self.recent.append((time.monotonic(), served, candidate))
        self.count += 1
        before = candidate - served - (self.candidate_mean - self.served_mean)
        self.served_mean += (served - self.served_mean) / self.count
        self.candidate_mean += (candidate - self.candidate_mean) / self.count
        after = candidate - served - (self.candidate_mean - self.served_mean)
        self.squares += before * after

    def dump(self) -> dict[str, Any]:
        return {
            "dimension": self.dimension,
            "scale": self.scale,
            "count": self.count,
            "served_mean": self.served_mean,
            "candidate_mean": self.candidate_mean,
            "squares": self.squares,
            "recent": list(self.recent),
        }

    def absorb(self, dumped: Mapping[str, Any]) -> None:
        """Of the last pictures those stay that are the last of both: each counts as much as any other."""
        theirs, count = dumped["count"], self.count + dumped["count"]
        if not theirs:
            return
        shift = dumped["candidate_mean"] - dumped["served_mean"] - (self.candidate_mean - self.served_mean)
        self.squares += dumped["squares"] + shift**2 * self.count * theirs / count
        self.served_mean += (dumped["served_mean"] - self.served_mean) * theirs / count
        self.candidate_mean += (dumped["candidate_mean"] - self.candidate_mean) * theirs / count
        self.count = count
        self.recent = deque(sorted([*self.recent, *map(tuple, dumped["recent"])]), self.recent.maxlen)

    def report(self) -> ShadowDimension:
        values = np.array(list(self.recent), np.float64).reshape(-1, 3)[:, 1:]
        return ShadowDimension(
            self.dimension,
            self.scale,
            self.count,
            rank_correlation(values[:, 0], values[:, 1]),
            len(values),
            self.served_mean,
            self.candidate_mean,
            self.candidate_mean - self.served_mean,
            (max(0.0, self.squares) / (self.count - 1)) ** 0.5 if self.count > 1 else None,
        )


@dataclass
class _Decided:
    rule: str
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def report(self) -> ShadowDecisions:
        counts = self.counts.copy()
        flips = tuple(
            ShadowFlip(served, candidate, count)
            for (served, candidate), count in counts.most_common()
            if served != candidate
        )
        return ShadowDecisions(self.rule, counts.total(), sum(flip.count for flip in flips), flips)


def rank_correlation(first: NDArray[np.float64], second: NDArray[np.float64]) -> float | None:
    """Spearman's, with equal values sharing the mean of their ranks; ``None`` where all values of one are equal."""
    if len(first) < 2:
        return None
    ranks = [_ranks(first), _ranks(second)]
    if any(np.ptp(entry) == 0 for entry in ranks):
        return None
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _feeds(policy: Policy, scores: Mapping[str, Score]) -> bool:
    """Whether every value that the policy compares is there."""
    return all(
        part.dimension in scores and value_on(scores[part.dimension], part.scale) is not None
        for part in policy.comparisons
    )
