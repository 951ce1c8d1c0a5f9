"""Moderation policies: what a picture's scores decide. Pure values and one pure function; files are policy_files.py's.

A policy is a list of rules. Every rule whose condition holds speaks, the most severe decision wins, so the order of the
rules does not matter; if none speaks, ``default`` holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import date
from types import MappingProxyType
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from critiq.types import Decision, Flag, Reason, Scale, Score, ScoreResult, Verdict
from critiq_server.bundles.manifest import Manifest
from critiq_server.wording import quoted

SEVERITY: Mapping[Decision, int] = MappingProxyType({name: rank for rank, name in enumerate(get_args(Decision))})
"""Larger is more severe."""
TOP: Mapping[Scale, float] = MappingProxyType({"calibrated": 1.0, "percentile": 100.0})
"""Both scales start at 0. Raw values have bounds of their model's own."""

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
Text = Annotated[str, Field(max_length=500)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Comparison(_Part):
    """One dimension's score held against a threshold. Exactly one of ``below``, ``above`` and ``between`` is set.

    A raw value that is better when lower is compared as it is: ``above`` then finds the bad ones.
    """

    dimension: str = Field(min_length=1, max_length=200, description="Dimension of the policy's model.")
    scale: Scale = Field("calibrated", description="calibrated: 0..1; percentile: 0..100; raw: the model's own.")
    below: Number | None = Field(None, description="Holds for less than this.")
    above: Number | None = Field(None, description="Holds for more than this.")
    between: tuple[Number, Number] | None = Field(
        None, description="Holds from the first to the second, both included."
    )

    @model_validator(mode="after")
    def _one_threshold_within_the_scale(self) -> Comparison:
        given = [name for name in ("below", "above", "between") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"set exactly one of below, above and between, not {' and '.join(given) or 'none'}")
        top = TOP.get(self.scale)
        for number in self.thresholds:
            if top is not None and not 0 <= number <= top:
                raise ValueError(f"{given[0]} {number:g} is outside the {self.scale} scale, 0..{top:g}")
        if self.between is not None and self.between[0] > self.between[1]:
            raise ValueError(
                f"between [{self.between[0]:g}, {self.between[1]:g}] holds for nothing; the lower is first"
            )
        return self

    @property
    def kind(self) -> Literal["below", "above", "between"]:
        """Which of the three is set."""
        if self.between is not None:
            return "between"
        return "below" if self.below is not None else "above"

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One number, or the two of ``between``."""
        if self.between is not None:
            return self.between
        return tuple(number for number in (self.below, self.above) if number is not None)

    def holds(self, value: float) -> bool:
        if self.below is not None:
            return value < self.below
        if self.above is not None:
            return value > self.above
        return self.between is not None and self.between[0] <= value <= self.between[1]


class FlagSet(_Part):
    """A report on the picture, the prompt or the scores says so."""

    flag: Flag


# In errors, tags stand among the fields' names; the brackets tell them apart.
def _kind_of_single(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return "(flag)" if "flag" in keys else "(comparison)"


def _kind_of(value: Any) -> str:
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return next((f"({kind})" for kind in ("all", "any") if kind in keys), "") or _kind_of_single(value)


Single = Annotated[
    Annotated[Comparison, Tag("(comparison)")] | Annotated[FlagSet, Tag("(flag)")], Discriminator(_kind_of_single)
]


class AllOf(_Part):
    """Every one of these holds."""

    all: tuple[Single, ...] = Field(min_length=1)


class AnyOf(_Part):
    """At least one of these holds."""

    any: tuple[Single, ...] = Field(min_length=1)


Condition = Annotated[
    Annotated[Comparison, Tag("(comparison)")]
    | Annotated[FlagSet, Tag("(flag)")]
    | Annotated[AllOf, Tag("(all)")]
    | Annotated[AnyOf, Tag("(any)")],
    Discriminator(_kind_of),
]


class Rule(_Part):
    """What to decide when a condition holds."""

    name: str = Field(min_length=1, max_length=100, description="Unique in its policy.")
    when: Condition
    decision: Decision
    reason: Name | None = Field(None, description="Code for machines. Default: the rule's name.")
    message: Text = Field("", description="For people. Default: what was compared with what.")

    @property
    def singles(self) -> tuple[Comparison | FlagSet, ...]:
        """The condition's parts."""
        if isinstance(self.when, AllOf):
            return self.when.all
        return self.when.any if isinstance(self.when, AnyOf) else (self.when,)


class Policy(_Part):
    """One version of one policy."""

    name: Name
    version: Name = Field(description="Quote it: 1.10 without quotation marks is the number 1.1.")
    description: Text = ""
    model: str = Field("", description="Default: the server's default model.")
    model_version: str = Field("", description="Default: the newest loaded version.")
    default: Decision = Field("accept", description="Where no rule speaks.")
    missing: Decision = Field(
        "review",
        description="Where a score that a rule compares is not there: it failed, needs a prompt and there is none, or "
        "has no value on that scale.",
    )
    rules: tuple[Rule, ...] = Field(min_length=1)

    @field_validator("version", mode="before")
    @classmethod
    def _whole_numbers_and_days_are_versions(cls, value: Any) -> Any:
        """What YAML makes of ``2`` and ``2026-11-21``, which it can be made back of."""
        whole = isinstance(value, int) and not isinstance(value, bool)
        return str(value) if whole or type(value) is date else value

    @model_validator(mode="after")
    def _rules_have_their_own_names(self) -> Policy:
        names = [rule.name for rule in self.rules]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"{names.count(name)} rules are called {name!r}; each needs its own name")
        return self

    @property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Every comparison in every rule."""
        return tuple(part for rule in self.rules for part in rule.singles if isinstance(part, Comparison))

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The dimensions that the rules compare, in the order of the rules; none if all rules are about flags."""
        return tuple(dict.fromkeys(part.dimension for part in self.comparisons))

    @property
    def flags(self) -> tuple[Flag, ...]:
        """The flags that the rules ask for."""
        return tuple(
            dict.fromkeys(part.flag for rule in self.rules for part in rule.singles if isinstance(part, FlagSet))
        )


def decide(policy: Policy, result: ScoreResult | None, failures: Mapping[str, str] = MappingProxyType({})) -> Verdict:
    """What ``policy`` says about a picture with these scores.

    Args:
        result: scores and reports; ``None`` if nothing could be scored.
        failures: why a dimension has no score, where that is known.

    Returns:
        The most severe decision of the rules that hold, of ``policy.missing`` for every score (or report that could set
        a flag) that is not there, or else ``policy.default``; with a reason for each condition that held, the most
        severe first.
    """
    scores = {score.dimension: score for score in result.scores} if result is not None else {}
    flags = _flags(result)
    reasons = [*_missing(policy, scores, failures)]
    if result is None and policy.flags:
        told = f"nothing was scored, so there are no reports that could set {', '.join(policy.flags)}"
        reasons.append(Reason("", policy.missing, "score_missing", told, "missing"))
    for rule in policy.rules:
        held = [reason for part in rule.singles for reason in _held(rule, part, scores, flags)]
        if len(held) == len(rule.singles) or (held and isinstance(rule.when, AnyOf)):
            reasons += held
    reasons.sort(key=lambda reason: -SEVERITY[reason.decision])
    return Verdict(
        decision=reasons[0].decision if reasons else policy.default,
        reasons=tuple(reasons),
        policy=policy.name,
        policy_version=policy.version,
        scores=result.scores if result is not None else (),
        image=result.image if result is not None else None,
        prompt=result.prompt if result is not None else None,
    )


def lacking(policy: Policy, manifest: Manifest) -> str:
    """What the policy compares and the model does not give; empty if it gives all."""
    dimensions = {dimension.name: dimension for dimension in manifest.dimensions}
    who = f"the policy {policy.name!r} version {policy.version!r} compares"
    whose = f"the model {manifest.name!r} version {manifest.version!r}"
    for part in policy.comparisons:
        dimension = dimensions.get(part.dimension)
        if dimension is None:
            return f"{who} {quoted(part.dimension)}, and {whose} has no such dimension; it has {', '.join(dimensions)}"
        if part.scale == "calibrated" and dimension.calibration is None:
            return f"{who} calibrated values of {part.dimension!r}, and {whose} has no calibration for it"
        if part.scale == "percentile" and dimension.reference is None:
            return f"{who} percentiles of {part.dimension!r}, and {whose} has no reference for it"
    return ""


def unfit(policies: Iterable[Policy], manifest: Manifest, called: Collection[str]) -> str:
    """Why a model may not be served, as a policy that is about it compares what it does not have; else empty.

    ``called``: what policies may call this model: its name, aliases, the empty string if it is the default.
    """
    for policy in policies:
        about = policy.model in called and policy.model_version in ("", manifest.version)
        if about and (problem := lacking(policy, manifest)):
            return f"{problem}; mend the policy, or pin its model_version to one that has it"
    return ""


def value_on(score: Score, scale: Scale) -> float | None:
    """The score's value on a scale; ``None`` where it has none that compares with others."""
    if scale == "raw":
        return None if score.degraded else score.raw
    return score.calibrated if scale == "calibrated" else score.percentile


def _held(
    rule: Rule, part: Comparison | FlagSet, scores: Mapping[str, Score], flags: frozenset[Flag]
) -> Iterator[Reason]:
    """The reason that one part of a rule's condition gives, if it holds."""
    code = rule.reason or rule.name
    if isinstance(part, FlagSet):
        if part.flag in flags:
            message = rule.message or f"{part.flag} is set"
            yield Reason(rule.name, rule.decision, code, message, "flag", flag=part.flag)
        return
    score = scores.get(part.dimension)
    value = value_on(score, part.scale) if score is not None else None
    if value is None or not part.holds(value):
        return
    limits = " and ".join(_number(number) for number in part.thresholds)
    yield Reason(
        rule.name,
        rule.decision,
        code,
        rule.message or f"{part.dimension} ({part.scale}) {_number(value)} is {part.kind} {limits}",
        part.kind,
        dimension=part.dimension,
        scale=part.scale,
        value=value,
        threshold=part.thresholds[0],
        upper=part.thresholds[1] if part.between is not None else None,
    )


def _number(value: float) -> str:
    return f"{value:.10g}"


def _flags(result: ScoreResult | None) -> frozenset[Flag]:
    """The flags that are set."""
    if result is None:
        return frozenset()
    flags = {flag for flag in get_args(Flag) if getattr(result.image, flag, False)}
    if result.prompt is not None and result.prompt.truncated:
        flags.add("prompt_truncated")
    if any(score.degraded for score in result.scores):
        flags.add("degraded")
    return frozenset(flags)


def _missing(policy: Policy, scores: Mapping[str, Score], failures: Mapping[str, str]) -> Iterator[Reason]:
    """One reason for each value that a rule compares and that is not there."""
    for dimension, scale in dict.fromkeys((part.dimension, part.scale) for part in policy.comparisons):
        score = scores.get(dimension)
        if score is not None and value_on(score, scale) is not None:
            continue
        why = failures.get(dimension, "it was not scored")
        if score is not None:
            why = f"the score is degraded: {score.degraded_reason}" if score.degraded else "the model gives none"
        message = f"there is no {scale} value of {dimension}: {why}"
        yield Reason("", policy.missing, "score_missing", message, "missing", dimension=dimension, scale=scale)
