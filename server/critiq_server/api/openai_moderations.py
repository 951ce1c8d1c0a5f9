"""``POST /v1/moderations`` in OpenAI's form: a policy stands in for the model, a dimension for a category.

The picture is an ``image_url`` part of the input, the prompt its ``text`` part. Quality is not safety: the categories
are the policy's own (``low_visual_quality`` and such); OpenAI's are not among them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from critiq import types
from critiq.errors import CritiqError, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, TooBusy
from critiq_server.api import bodies
from critiq_server.api.answers import dumps
from critiq_server.api.compat.http import outcome
from critiq_server.api.disconnects import unless_gone
from critiq_server.api.schemas import ImageJson
from critiq_server.images.source import ImageSource, RemoteImage
from critiq_server.moderation import Moderation
from critiq_server.queries import Query
from critiq_server.scoring.policies import SEVERITY, Policy
from critiq_server.telemetry.counters import ERRORS

OPENAI_MODELS = ("omni-moderation-", "text-moderation-")
"""Names that begin so are sent by programs that were written for OpenAI: they mean the default policy."""


class _Sent(BaseModel):
    # Clients of later versions may send more.
    model_config = ConfigDict(extra="ignore")


class _Url(_Sent):
    url: str


class _ImagePart(_Sent):
    type: Literal["image_url"]
    image_url: _Url


class _TextPart(_Sent):
    type: Literal["text"]
    text: str


class _Body(_Sent):
    input: list[Annotated[_ImagePart | _TextPart, Field(discriminator="type")]]
    model: str | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _strings_are_texts(cls, value: Any) -> Any:
        parts = [value] if isinstance(value, str) else value
        if not isinstance(parts, list):
            return parts
        return [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]


def routes(moderation: Moderation) -> list[Route]:
    """The route, if the settings ask for it."""

    async def moderations(request: Request) -> Response:
        found = await outcome("OpenAI face", _answer(moderation, request))
        if isinstance(found, CritiqError):
            return _refusal(found)
        return Response(dumps(found), media_type=bodies.JSON)

    enabled = moderation.service.settings.moderation.openai.enabled
    return [Route("/v1/moderations", moderations, methods=["POST"])] if enabled else []


async def _answer(moderation: Moderation, request: Request) -> dict[str, Any]:
    body = bodies.from_json(_Body, await request.body())
    image, prompt = _picture(body.input)
    name = body.model or ""
    name, _, version = ("" if name.startswith(OPENAI_MODELS) else name).partition(":")
    policy = moderation.policies.get(name, version)
    work = moderation.moderate(Query(image, prompt), policy.name, policy.version, bodies.timeout(request))
    verdict = await unless_gone(request, work)
    return {
        "id": f"modr-{uuid4().hex}",
        "model": f"{policy.name}:{policy.version}",
        "results": [_result(moderation, policy, verdict)],
    }


def _result(moderation: Moderation, policy: Policy, verdict: types.Verdict) -> dict[str, Any]:
    settings = moderation.service.settings.moderation.openai
    least = SEVERITY[settings.flagged_from]
    severe = [reason for reason in verdict.reasons if SEVERITY[reason.decision] >= least]
    scores = {score.dimension: score for score in verdict.scores}
    categories = settings.categories or {f"low_{dimension}": dimension for dimension in policy.dimensions}
    judged = {name: scores[dimension] for name, dimension in categories.items() if dimension in scores}
    needs_prompt = moderation.needing_prompt(policy)
    return {
        "flagged": SEVERITY[verdict.decision] >= least,
        "categories": {
            name: any(reason.dimension == score.dimension for reason in severe) for name, score in judged.items()
        },
        "category_scores": {name: found for name, score in judged.items() if (found := _badness(score)) is not None},
        "category_applied_input_types": {
            name: ["image", "text"] if score.dimension in needs_prompt else ["image"] for name, score in judged.items()
        },
        "verdict": verdict,
    }


def _badness(score: types.Score) -> float | None:
    """0 (best) .. 1 (worst), as a category's score; ``None`` if the model gives neither calibration nor reference."""
    if score.calibrated is not None:
        return round(1 - score.calibrated, 4)
    return round(1 - score.percentile / 100, 4) if score.percentile is not None else None


def _picture(parts: Sequence[_ImagePart | _TextPart]) -> tuple[ImageSource | RemoteImage, str]:
    """The picture and the prompt of an input."""
    images = [part.image_url.url for part in parts if isinstance(part, _ImagePart)]
    texts = [part.text for part in parts if isinstance(part, _TextPart)]
    if len(images) != 1 or len(texts) > 1:
        raise InvalidArgument(
            f"the input has {len(images)} pictures and {len(texts)} texts; this server judges one picture, with at "
            "most one text, the prompt that it was made from: send parts of type image_url and text",
            field="input",
        )
    return _source(images[0]), texts[0] if texts else ""


def _source(url: str) -> ImageSource | RemoteImage:
    if not url.startswith("data:"):
        return RemoteImage(url)
    if not re.match(r"data:[^,]{0,200};base64,", url):
        raise InvalidArgument("a data: URL is of the form data:image/png;base64,...", field="input")
    return ImageJson(base64=url).source()


def _refusal(error: CritiqError) -> Response:
    """The error in OpenAI's form. What lasts is 400, so that OpenAI's clients do not repeat it."""
    ERRORS.labels("rest", error.code).inc()
    status, kind, code = error.http_status, "invalid_request_error", error.code.lower()
    refused_url = isinstance(error, PermissionDenied) and error.field == "image.url"
    if isinstance(error, FailedPrecondition) or refused_url:
        status = 400
    elif isinstance(error, TooBusy):
        kind, code = "rate_limit_error", "rate_limit_exceeded"
    elif isinstance(error, NotFound) and error.field in ("policy", "policy_version"):
        code = "model_not_found"
    elif status >= 499:
        kind = "server_error"
    param = {"policy": "model", "policy_version": "model"}.get(error.field, error.field)
    if param.startswith(("image", "prompt")):
        param = "input"
    headers = {} if error.retry_after is None else {"Retry-After": str(math.ceil(error.retry_after))}
    body = {"error": {"message": error.message, "type": kind, "param": param or None, "code": code}}
    return Response(dumps(body), status, headers, media_type=bodies.JSON)
