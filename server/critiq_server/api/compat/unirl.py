"""UniRL's reward service: ``GET /health`` with the roster of rewards, and ``POST /score``.

A request is a conversation whose last turn holds the picture; each has rewards of its own to be judged by. Answers are
aligned by index: ``results`` holds ``{reward: {scale: value}}``, ``errors`` ``{reward: text}``. A reward has one
sub-metric, so that the client's ways to reduce several (first, mean, max) all give it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from critiq.errors import CritiqError, InvalidArgument
from critiq_server.api.compat import http
from critiq_server.api.compat.flow_factory import image_of
from critiq_server.api.compat.rewards import Outcome, Rewards, Sample, may_pass
from critiq_server.api.disconnects import unless_gone


class _Turn(BaseModel):
    # Clients of later versions may send more.
    model_config = ConfigDict(extra="ignore")

    text: str = ""
    image_b64: str | None = None


class _Request(BaseModel):
    model_config = ConfigDict(extra="allow")

    history: list[_Turn] = Field(min_length=1)
    required_rewards: list[str] = Field(min_length=1)


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore")

    requests: list[_Request]


_IDENTITY = ("request_id", "sample_id", "group_id", "source_rank", "policy_version", "idempotency_key")


class _WrongShape(InvalidArgument):
    """Answered with 422, as clients of this face expect of a body that is no list of requests."""


def routes(rewards: Rewards) -> list[Route]:
    """``/health`` and ``/score``."""

    async def health(request: Request) -> Response:
        names = rewards.names()
        roster = {name: ["ready"] for name in names}
        return http.json_response({"status": "ok" if names else "not ready", "rewards": roster}, 200 if names else 503)

    async def score(request: Request) -> Response:
        found = await http.outcome("UniRL face", _answer(rewards, request))
        if isinstance(found, CritiqError):
            lasting = 422 if isinstance(found, _WrongShape) else 400
            return http.json_response({"detail": str(found)}, *http.status(found, lasting))
        return http.json_response(found)

    return [Route("/health", health), Route("/score", score, methods=["POST"])]


async def _answer(rewards: Rewards, request: Request) -> dict[str, Any]:
    asked = _requests(await http.body(request, rewards.request_bytes))
    for entry in asked:
        rewards.check(entry.required_rewards)
    outcomes = await unless_gone(request, _score(rewards, asked))
    errors = [error for outcome in outcomes for error in outcome.values() if isinstance(error, CritiqError)]
    passing = next((error for error in errors if may_pass(error)), None)
    if passing is not None:
        raise passing
    return {
        "protocol_version": "1",
        "results": [_values(rewards, outcome) for outcome in outcomes],
        "errors": [
            {name: str(error) for name, error in outcome.items() if isinstance(error, CritiqError)}
            for outcome in outcomes
        ],
        "identities": [_identity(rewards, entry) for entry in asked],
    }


def _requests(data: bytes) -> list[_Request]:
    try:
        return _Body.model_validate(http.json_of(data)).requests
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise _WrongShape(
            f"{first['msg']}; the body holds requests, each with a history of turns (text, image_b64) and "
            "required_rewards",
            field=".".join(map(str, first["loc"])),
        ) from error


async def _score(rewards: Rewards, asked: Sequence[_Request]) -> list[dict[str, Outcome]]:
    """All requests that want the same rewards go to the service together."""
    if not asked:
        raise InvalidArgument("there is nothing to score; send at least one request", field="requests")
    outcomes: list[dict[str, Outcome]] = [{} for _ in asked]
    by_rewards: dict[tuple[str, ...], list[int]] = {}
    for index, entry in enumerate(asked):
        by_rewards.setdefault(tuple(dict.fromkeys(entry.required_rewards)), []).append(index)
    for names, indices in by_rewards.items():
        found = await rewards.score(names, [_sample(asked[index], index) for index in indices])
        for index, outcome in zip(indices, found, strict=True):
            outcomes[index] = outcome
    return outcomes


def _sample(entry: _Request, index: int) -> Sample:
    """The last turn: earlier ones hold the picture that was edited, which no reward here looks at."""
    turn = entry.history[-1]
    field = f"requests[{index}].history[{len(entry.history) - 1}].image_b64"
    if turn.image_b64 is None:
        return Sample(InvalidArgument("there is no picture; videos and paths are not scored", field=field), turn.text)
    return Sample(image_of(turn.image_b64, field), turn.text)


def _values(rewards: Rewards, outcome: dict[str, Outcome]) -> dict[str, dict[str, float]]:
    return {
        name: {rewards.settings(name).scale: value}
        for name, value in outcome.items()
        if not isinstance(value, CritiqError)
    }


def _identity(rewards: Rewards, entry: _Request) -> dict[str, Any]:
    """What the client sent to recognise its request by, with the version that truly answered."""
    sent = entry.model_extra or {}
    versions = [version for name in entry.required_rewards for version in rewards.versions(name)]
    return {
        **{key: sent.get(key) for key in _IDENTITY},
        "scorer_version": versions[0] if len(set(versions)) == 1 else None,
    }
