"""Moderation over REST and gRPC. It translates; it decides nothing."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from google.protobuf.message import Message
from starlette.routing import Route

from critiq import types, wire_verdicts
from critiq.v1 import scoring_pb2
from critiq_server.api import bodies, schemas, translate
from critiq_server.api.answers import answer, operation
from critiq_server.api.disconnects import unless_gone
from critiq_server.moderation import Moderation


def add_moderation(app: FastAPI, moderation: Moderation) -> None:
    """``/v1/moderate`` and ``/v1/policies``."""

    @app.post(
        "/v1/moderate",
        **operation(schemas.ModerateJson, schemas.VerdictJson, "Decide about one picture by a policy", files=True),
    )
    async def moderate(request: Request) -> Response:
        query, policy, version = await bodies.moderate_query(request)
        verdict = await unless_gone(request, moderation.moderate(query, policy, version, bodies.timeout(request)))
        return answer(request, {"verdict": verdict}, lambda found: _response(found["verdict"]))

    # Without FastAPI's layers, as /v1/score.
    app.router.routes.insert(0, Route("/v1/moderate", moderate, methods=["POST"]))

    @app.get("/v1/policies", **operation(None, schemas.PoliciesJson, "Known policies"))
    async def policies(request: Request) -> Response:
        return answer(request, {"policies": moderation.policies.describe()}, lambda found: _policies(found["policies"]))


async def moderate(moderation: Moderation, request: scoring_pb2.ModerateRequest, timeout: float | None) -> Message:
    """``Scoring.Moderate``."""
    query, policy, version = translate.moderate_query(request)
    return _response(await moderation.moderate(query, policy, version, timeout))


async def policies(moderation: Moderation, request: scoring_pb2.PoliciesRequest, timeout: float | None) -> Message:
    """``Scoring.Policies``."""
    return _policies(moderation.policies.describe())


def _response(verdict: types.Verdict) -> scoring_pb2.ModerateResponse:
    return scoring_pb2.ModerateResponse(verdict=wire_verdicts.verdict_to_proto(verdict))


def _policies(policies: list[types.PolicyInfo]) -> scoring_pb2.PoliciesResponse:
    return scoring_pb2.PoliciesResponse(policies=[wire_verdicts.policy_to_proto(policy) for policy in policies])
