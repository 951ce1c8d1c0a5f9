"""A policy tried on recorded scores: what it would have decided, and what changes against an older one.

A recording is what ``critiq score`` writes: the rows of ``--output scores.jsonl``, or the lines of ``--json``, which
know every flag.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from critiq.errors import FeaturesMissing, Internal
from critiq.types import Decision, Flag, ImageReport, PromptReport, Score, ScoreResult, Verdict
from critiq_server.scoring.policies import SEVERITY, Policy, decide

SCORED_WITHOUT = (FeaturesMissing.code, Internal.code)
"""Errors that a policy decides about, as a server does: the picture is sound, its scores are missing."""


class RecordingError(ValueError):
    """A recording cannot be used; the message says which line and why."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One picture. Without ``result`` its scoring failed with the error ``code``; ``flags`` are those recorded."""

    file: str
    result: ScoreResult | None
    code: str = ""
    flags: frozenset[Flag] = frozenset()


def read_recording(path: Path) -> Iterator[Recorded]:
    """The pictures in a JSON Lines file, one at a time. Raises ``RecordingError``."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _recorded(line, f"{path}, line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordingError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


@dataclass(slots=True)
class Outcome:
    """What one policy decides about the pictures of a recording.

    ``rules`` counts the pictures that each rule spoke about, ``decided`` those whose decision it gave (a rule as severe
    may have spoken too); ``missing`` those where a score was missing, ``default`` those where nothing spoke.
    """

    policy: Policy
    decisions: Counter[Decision] = field(default_factory=Counter)
    rules: Counter[str] = field(default_factory=Counter)
    decided: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    default: int = 0

    def add(self, verdict: Verdict) -> None:
        self.decisions[verdict.decision] += 1
        spoke = {reason.rule for reason in verdict.reasons}
        self.rules.update(spoke - {""})
        self.decided.update({reason.rule for reason in verdict.reasons if reason.decision == verdict.decision} - {""})
        self.missing += "" in spoke
        self.default += not spoke


@dataclass(frozen=True, slots=True)
class Change:
    """A picture on which two policies disagree, and why the new one decides as it does."""

    file: str
    old: Decision
    new: Decision
    reasons: tuple[str, ...]


@dataclass(slots=True)
class Trial:
    """The outcome of a policy, and of an older one if there is one, on the same pictures.

    ``failed`` pictures could not be read, so no policy decides about them. ``changes`` counts (old, new) pairs that
    differ; ``examples`` holds the first few of each.
    """

    new: Outcome
    old: Outcome | None = None
    pictures: int = 0
    failed: int = 0
    changes: Counter[tuple[Decision, Decision]] = field(default_factory=Counter)
    examples: dict[tuple[Decision, Decision], list[Change]] = field(default_factory=dict)
    unscored: Counter[str] = field(default_factory=Counter)
    """By dimension: pictures without a score of it."""
    untold: Counter[Flag] = field(default_factory=Counter)
    """By flag that the policy asks for: pictures whose recording does not tell it; it counts as not set."""
    strangers: Counter[str] = field(default_factory=Counter)
    """Models that gave scores and are not the policy's, with the number of pictures."""


def try_policy(
    policy: Policy, recording: Iterable[Recorded], against: Policy | None = None, examples: int = 5
) -> Trial:
    """What ``policy`` decides about recorded pictures; ``examples`` of each change against an older policy are kept."""
    trial = Trial(Outcome(policy), Outcome(against) if against is not None else None)
    for entry in recording:
        trial.pictures += 1
        if entry.result is None and entry.code not in SCORED_WITHOUT:
            trial.failed += 1
            continue
        _note(trial, entry)
        verdict = decide(policy, entry.result)
        trial.new.add(verdict)
        if trial.old is None:
            continue
        before = decide(trial.old.policy, entry.result)
        trial.old.add(before)
        if before.decision != verdict.decision:
            pair = before.decision, verdict.decision
            trial.changes[pair] += 1
            kept = trial.examples.setdefault(pair, [])
            if len(kept) < examples:
                told = tuple(reason.message for reason in verdict.reasons) or ("no rule speaks",)
                kept.append(Change(entry.file, *pair, told))
    return trial


def severity_of_change(pair: tuple[Decision, Decision]) -> int:
    """Sorts changes: what becomes most severe comes last."""
    return SEVERITY[pair[1]] * len(SEVERITY) - SEVERITY[pair[0]]


def _note(trial: Trial, entry: Recorded) -> None:
    """What the recording does not tell about a picture, or tells about another model."""
    policy = trial.new.policy
    scores = {score.dimension: score for score in entry.result.scores} if entry.result is not None else {}
    trial.unscored.update(name for name in policy.dimensions if name not in scores)
    trial.untold.update(flag for flag in policy.flags if flag not in entry.flags)
    if policy.model:
        trial.strangers.update(
            {
                f"{score.model} {score.model_version}"
                for name, score in scores.items()
                if name in policy.dimensions
                and (score.model != policy.model or policy.model_version not in ("", score.model_version))
            }
        )


def _recorded(line: str, place: str) -> Recorded:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise RecordingError(f"{place}: no JSON: {error}") from error
    if not isinstance(row, dict) or not isinstance(row.get("file"), str):
        raise RecordingError(f"{place}: not of `critiq score`: an object with a field file is due")
    try:
        failure = row.get("error")
        if failure:
            code = failure["code"] if isinstance(failure, dict) else str(failure).partition(":")[0]
            return Recorded(row["file"], None, code)
        return _of_json(row) if isinstance(row.get("scores"), dict) else _of_output(row)
    except (KeyError, TypeError, ValueError) as error:
        raise RecordingError(f"{place}: not of `critiq score`: {type(error).__name__} {error}") from error


def _of_json(row: Mapping[str, Any]) -> Recorded:
    """A line of ``critiq score --json``."""
    scores = tuple(_score(name, entry, entry) for name, entry in row["scores"].items())
    report = row.get("prompt_report")
    known = frozenset(get_args(Flag))
    prompt = PromptReport(**report) if report is not None else None
    return Recorded(row["file"], ScoreResult(scores, ImageReport(**row["image"]), prompt), flags=known)


def _of_output(row: Mapping[str, Any]) -> Recorded:
    """A row of ``critiq score --output FILE.jsonl``: values by column; of the flags only whether the prompt was cut."""
    names = [column.removesuffix("_raw") for column in row if column.endswith("_raw")]
    scores = tuple(
        _score(name, row, {value: row.get(f"{name}_{value}") for value in ("raw", "calibrated", "percentile")})
        for name in names
    )
    image = ImageReport(str(row.get("format", "")), int(row.get("width", 0)), int(row.get("height", 0)))
    prompt = PromptReport(0, 0, bool(row["prompt_truncated"])) if "prompt_truncated" in row else None
    return Recorded(row["file"], ScoreResult(scores, image, prompt), flags=frozenset({"prompt_truncated"}))


def _score(dimension: str, row: Mapping[str, Any], values: Mapping[str, Any]) -> Score:
    """Direction and scope are not always recorded, and no policy looks at them."""
    return Score(
        dimension=dimension,
        raw=float(values["raw"]),
        calibrated=_number(values.get("calibrated")),
        percentile=_number(values.get("percentile")),
        direction=row.get("direction", "higher_is_better"),
        scope=row.get("scope", "absolute"),
        model=str(row.get("model", "")),
        model_version=str(row.get("model_version", "")),
        from_store=False,
        degraded=bool(row.get("degraded", False)),
        degraded_reason=str(row.get("degraded_reason", "")),
    )


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
