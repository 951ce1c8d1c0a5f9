"""Verdicts and policies of moderation between the Python types and the protobuf messages: ``wire.py``'s other half."""

from __future__ import annotations

from typing import Any, cast, get_args

from critiq import types, wire
from critiq.v1 import scoring_pb2

_DECISION = {name: number for number, name in enumerate(get_args(types.Decision), start=1)}
_KIND = {name: number for number, name in enumerate(get_args(types.ReasonKind), start=1)}
_SCALE = {name: number for number, name in enumerate(get_args(types.Scale), start=1)}


def _name(table: dict[str, int], number: int, unknown: str | None) -> Any:
    return next((name for name, value in table.items() if value == number), unknown)


def _decision(number: int) -> types.Decision:
    """A decision that this client does not know yet must not pass for an acceptance: somebody should look."""
    return cast(types.Decision, _name(_DECISION, number, "review"))


def reason_to_proto(reason: types.Reason) -> scoring_pb2.Reason:
    return scoring_pb2.Reason(
        rule=reason.rule,
        decision=cast(Any, _DECISION[reason.decision]),
        code=reason.code,
        message=reason.message,
        kind=cast(Any, _KIND[reason.kind]),
        dimension=reason.dimension,
        scale=cast(Any, 0 if reason.scale is None else _SCALE[reason.scale]),
        value=reason.value,
        threshold=reason.threshold,
        upper=reason.upper,
        flag=reason.flag or "",
    )


def reason_from_proto(message: scoring_pb2.Reason) -> types.Reason:
    return types.Reason(
        rule=message.rule,
        decision=_decision(message.decision),
        code=message.code,
        message=message.message,
        kind=_name(_KIND, message.kind, "flag"),
        dimension=message.dimension,
        scale=_name(_SCALE, message.scale, None),
        value=message.value if message.HasField("value") else None,
        threshold=message.threshold if message.HasField("threshold") else None,
        upper=message.upper if message.HasField("upper") else None,
        flag=cast(Any, message.flag or None),
    )


def verdict_to_proto(verdict: types.Verdict) -> scoring_pb2.Verdict:
    return scoring_pb2.Verdict(
        decision=cast(Any, _DECISION[verdict.decision]),
        reasons=[reason_to_proto(reason) for reason in verdict.reasons],
        policy=verdict.policy,
        policy_version=verdict.policy_version,
        scores=[wire.score_to_proto(score) for score in verdict.scores],
        image=wire.image_report_to_proto(verdict.image) if verdict.image is not None else None,
        prompt=wire.prompt_report_to_proto(verdict.prompt),
    )


def verdict_from_proto(message: scoring_pb2.Verdict) -> types.Verdict:
    return types.Verdict(
        decision=_decision(message.decision),
        reasons=tuple(reason_from_proto(reason) for reason in message.reasons),
        policy=message.policy,
        policy_version=message.policy_version,
        scores=tuple(wire.score_from_proto(score) for score in message.scores),
        image=wire.image_report_from_proto(message.image) if message.HasField("image") else None,
        prompt=wire.prompt_report_from_proto(message.prompt) if message.HasField("prompt") else None,
    )


def policy_to_proto(policy: types.PolicyInfo) -> scoring_pb2.Policy:
    return scoring_pb2.Policy(
        name=policy.name,
        version=policy.version,
        description=policy.description,
        model=policy.model,
        model_version=policy.model_version,
        dimensions=policy.dimensions,
        rules=policy.rules,
        default=cast(Any, _DECISION[policy.default]),
        missing=cast(Any, _DECISION[policy.missing]),
        is_default=policy.is_default,
    )


def policy_from_proto(message: scoring_pb2.Policy) -> types.PolicyInfo:
    return types.PolicyInfo(
        name=message.name,
        version=message.version,
        description=message.description,
        model=message.model,
        model_version=message.model_version,
        dimensions=tuple(message.dimensions),
        rules=tuple(message.rules),
        default=_decision(message.default),
        missing=_decision(message.missing),
        is_default=message.is_default,
    )
