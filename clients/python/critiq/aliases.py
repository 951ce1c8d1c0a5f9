"""Aliases of model versions as Python values; the comments in ``proto/critiq/v1/models.proto`` are the reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from critiq import types, wire
from critiq.errors import InvalidArgument
from critiq.v1 import models_pb2


@dataclass(frozen=True, slots=True)
class AliasTarget:
    """One model version behind an alias, with its share in percent."""

    model: str
    version: str = ""
    percent: float = 100.0

    def __str__(self) -> str:
        return f"{self.model}:{self.version}" if self.version else self.model


@dataclass(frozen=True, slots=True)
class AliasRoute:
    """Where an alias pointed, from when on (Unix, seconds), and by whose key; ``by`` is empty where nobody asked."""

    targets: tuple[AliasTarget, ...]
    since: float = 0.0
    by: str = ""


@dataclass(frozen=True, slots=True)
class Alias:
    """A name for model versions: where it points, what is scored beside it, where it pointed before (latest first)."""

    name: str
    route: AliasRoute
    shadow: AliasTarget | None = None
    history: tuple[AliasRoute, ...] = ()

    @property
    def targets(self) -> tuple[AliasTarget, ...]:
        return self.route.targets

    @property
    def main(self) -> AliasTarget:
        """The target with the largest share; of equal ones the first."""
        return max(self.targets, key=lambda target: target.percent)


@dataclass(frozen=True, slots=True)
class ShadowDimension:
    """Scores of one dimension; differences are candidate minus served. What cannot be known is ``None``."""

    dimension: str
    scale: types.Scale
    count: int
    srcc: float | None
    window: int
    served_mean: float
    candidate_mean: float
    mean_shift: float
    difference_stddev: float | None


@dataclass(frozen=True, slots=True)
class ShadowFlip:
    """So many pictures got one decision by the served scores and another by the candidate's."""

    served: str
    candidate: str
    count: int


@dataclass(frozen=True, slots=True)
class ShadowDecisions:
    """What a policy or a threshold decides by the scores of both."""

    rule: str
    count: int
    flips: int
    changes: tuple[ShadowFlip, ...] = ()


@dataclass(frozen=True, slots=True)
class ShadowPair:
    """The candidate against one version that served."""

    served: AliasTarget
    scored: int
    dimensions: tuple[ShadowDimension, ...] = ()
    decisions: tuple[ShadowDecisions, ...] = ()


@dataclass(frozen=True, slots=True)
class ShadowReport:
    """How far the scores of an alias's shadow agree with those that callers got, since the alias was changed last.

    ``processes``: whose pictures these are; ``None`` where one serving process is alone.
    """

    alias: str
    candidate: AliasTarget
    since: float
    scored: int = 0
    dropped: int = 0
    failed: int = 0
    last_failure: str = ""
    pairs: tuple[ShadowPair, ...] = ()
    processes: types.Processes | None = None


def parse_target(text: str, field: str = "targets") -> tuple[AliasTarget, bool]:
    """``MODEL[:VERSION][=PERCENT]``, and whether it gives a percentage. Raises ``InvalidArgument``."""
    name, equals, percent = text.strip().partition("=")
    model, _, version = name.partition(":")
    if not model.strip() or ":" in version:
        raise InvalidArgument(f"{text[:200]!r} is not of the form MODEL:VERSION=PERCENT", field=field)
    if not equals:
        return AliasTarget(model, version), False
    try:
        return AliasTarget(model, version, float(percent.removesuffix("%"))), True
    except ValueError as error:
        raise InvalidArgument(f"{percent[:40]!r} in {text[:200]!r} is no percentage", field=field) from error


def parse_targets(texts: Sequence[str]) -> tuple[AliasTarget, ...]:
    """Targets of an alias; one may leave its share out and gets what the others leave. Raises ``InvalidArgument``."""
    return shared([parse_target(text, f"targets[{position}]") for position, text in enumerate(texts)])


def shared(targets: Iterable[tuple[AliasTarget, bool]]) -> tuple[AliasTarget, ...]:
    """Targets whose shares add up to 100, from targets of which one need not say its own.

    Raises ``InvalidArgument`` if they do not add up, a share is not above 0, or there are no targets.
    """
    given = list(targets)
    if not given:
        raise InvalidArgument("name at least one target, as MODEL:VERSION", field="targets")
    open_ones = [target for target, has_share in given if not has_share]
    taken = sum(target.percent for target, has_share in given if has_share)
    if len(open_ones) > 1:
        names = " and ".join(str(target) for target in open_ones)
        raise InvalidArgument(f"{names} have no share; only one target may leave it out", field="targets")
    found = tuple(target if has_share else replace(target, percent=100.0 - taken) for target, has_share in given)
    for position, target in enumerate(found):
        if not 0 < target.percent <= 100:  # NaN too
            raise InvalidArgument(
                f"the share of {target} is {target.percent:g} %; more than 0 and at most 100 is due",
                field=f"targets[{position}].percent",
            )
    if abs(sum(target.percent for target in found) - 100) > 1e-6:
        shares = " + ".join(f"{target.percent:g}" for target in found)
        raise InvalidArgument(f"the shares {shares} do not add up to 100", field="targets")
    return found


def target_to_proto(target: AliasTarget) -> models_pb2.AliasTarget:
    return models_pb2.AliasTarget(model=target.model, version=target.version, percent=target.percent)


def target_from_proto(message: models_pb2.AliasTarget) -> AliasTarget:
    return AliasTarget(message.model, message.version, message.percent if message.HasField("percent") else 100.0)


def alias_to_proto(alias: Alias) -> models_pb2.Alias:
    return models_pb2.Alias(
        name=alias.name,
        route=_route_to_proto(alias.route),
        shadow=target_to_proto(alias.shadow) if alias.shadow is not None else None,
        history=[_route_to_proto(route) for route in alias.history],
    )


def alias_from_proto(message: models_pb2.Alias) -> Alias:
    return Alias(
        message.name,
        _route_from_proto(message.route),
        target_from_proto(message.shadow) if message.HasField("shadow") else None,
        tuple(_route_from_proto(route) for route in message.history),
    )


def report_to_proto(report: ShadowReport) -> models_pb2.ShadowReport:
    return models_pb2.ShadowReport(
        alias=report.alias,
        candidate=target_to_proto(report.candidate),
        since=report.since,
        scored=report.scored,
        dropped=report.dropped,
        failed=report.failed,
        last_failure=report.last_failure,
        pairs=[_pair_to_proto(pair) for pair in report.pairs],
        processes=_processes_to_proto(report.processes) if report.processes is not None else None,
    )


def report_from_proto(message: models_pb2.ShadowReport) -> ShadowReport:
    return ShadowReport(
        message.alias,
        target_from_proto(message.candidate),
        message.since,
        message.scored,
        message.dropped,
        message.failed,
        message.last_failure,
        tuple(_pair_from_proto(pair) for pair in message.pairs),
        _processes_from_proto(message.processes) if message.HasField("processes") else None,
    )


def _route_to_proto(route: AliasRoute) -> models_pb2.AliasRoute:
    return models_pb2.AliasRoute(
        targets=[target_to_proto(target) for target in route.targets], since=route.since, by=route.by
    )


def _route_from_proto(message: models_pb2.AliasRoute) -> AliasRoute:
    return AliasRoute(tuple(target_from_proto(target) for target in message.targets), message.since, message.by)


def _pair_to_proto(pair: ShadowPair) -> models_pb2.ShadowPair:
    return models_pb2.ShadowPair(
        served=target_to_proto(pair.served),
        scored=pair.scored,
        dimensions=[
            models_pb2.ShadowDimension(
                dimension=entry.dimension,
                scale=wire.scale_to_proto(entry.scale),
                count=entry.count,
                srcc=entry.srcc,
                window=entry.window,
                served_mean=entry.served_mean,
                candidate_mean=entry.candidate_mean,
                mean_shift=entry.mean_shift,
                difference_stddev=entry.difference_stddev,
            )
            for entry in pair.dimensions
        ],
        decisions=[
            models_pb2.ShadowDecisions(
                rule=entry.rule,
                count=entry.count,
                flips=entry.flips,
                changes=[
                    models_pb2.ShadowFlip(served=flip.served, candidate=flip.candidate, count=flip.count)
                    for flip in entry.changes
                ],
            )
            for entry in pair.decisions
        ],
    )


def _pair_from_proto(message: models_pb2.ShadowPair) -> ShadowPair:
    return ShadowPair(
        target_from_proto(message.served),
        message.scored,
        tuple(
            ShadowDimension(
                entry.dimension,
                wire.scale_from_proto(entry.scale),
                entry.count,
                _known(entry, "srcc"),
                entry.window,
                entry.served_mean,
                entry.candidate_mean,
                entry.mean_shift,
                _known(entry, "difference_stddev"),
            )
            for entry in message.dimensions
        ),
        tuple(
            ShadowDecisions(
                entry.rule,
                entry.count,
                entry.flips,
                tuple(ShadowFlip(flip.served, flip.candidate, flip.count) for flip in entry.changes),
            )
            for entry in message.decisions
        ),
    )


def _processes_to_proto(processes: types.Processes) -> models_pb2.Processes:
    return models_pb2.Processes(answered=processes.answered, of=processes.of, missing=processes.missing)


def _processes_from_proto(message: models_pb2.Processes) -> types.Processes:
    return types.Processes(message.answered, message.of, tuple(message.missing))


def _known(message: Any, field: str) -> float | None:
    return getattr(message, field) if message.HasField(field) else None
