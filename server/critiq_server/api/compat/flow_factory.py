"""Flow-Factory's remote reward: ``GET /health`` and ``POST /compute`` with PNG files in base64.

Its client repeats every HTTP error three times without a pause and then reports only the status; ``{"error": text}``
with status 200 it raises at once with the text. So errors that last are answered so, and those that may pass with 503.
"""

from __future__ import annotations

import binascii
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from critiq.errors import CritiqError, InvalidArgument
from critiq_server.api.compat import http
from critiq_server.api.compat.rewards import Rewards, Sample, samples_of
from critiq_server.api.disconnects import unless_gone
from critiq_server.images.source import EncodedImage, ImageSource


def routes(rewards: Rewards) -> list[Route]:
    """``/REWARD/health`` and ``/REWARD/compute``."""
    return _routes(rewards, "", "/{reward}")


def listener_routes(rewards: Rewards, reward: str) -> list[Route]:
    return _routes(rewards, reward, "")


def _routes(rewards: Rewards, reward: str, prefix: str) -> list[Route]:
    async def health(request: Request) -> Response:
        name = reward or request.path_params["reward"]
        ready = rewards.ready(name)
        return http.json_response({"status": "ok" if ready else "not ready", "reward": name}, 200 if ready else 503)

    async def compute(request: Request) -> Response:
        work = _rewards(rewards, reward or request.path_params["reward"], request)
        found = await http.outcome("Flow-Factory face", work)
        if isinstance(found, CritiqError):
            return http.json_response({"error": str(found)}, *http.status(found, lasting=200))
        return http.json_response({"rewards": found})

    return [Route(f"{prefix}/health", health), Route(f"{prefix}/compute", compute, methods=["POST"])]


async def _rewards(rewards: Rewards, reward: str, request: Request) -> list[float]:
    samples = _samples(http.json_of(await http.body(request, rewards.request_bytes)))
    return await unless_gone(request, rewards.score_one(reward, samples))


def _samples(message: dict[str, Any]) -> list[Sample]:
    images, prompts = message.get("image"), message.get("prompt")
    if images is None:
        also = " (videos are not scored)" if message.get("video") else ""
        raise InvalidArgument(f"there are no pictures{also}; a list of files in base64 is due", field="image")
    if not isinstance(images, list):
        raise InvalidArgument("a list of files in base64 is due", field="image")
    if prompts is not None and not (isinstance(prompts, list) and all(isinstance(text, str) for text in prompts)):
        raise InvalidArgument("a list of texts is due", field="prompt")
    return samples_of([image_of(image, f"image[{index}]") for index, image in enumerate(images)], prompts)


def image_of(text: Any, field: str) -> ImageSource | CritiqError:
    """A file in base64, or what is wrong with it."""
    if not isinstance(text, str):
        return InvalidArgument("a file in base64 is due", field=field)
    try:
        encoded = text.partition(",")[2] if text.startswith("data:") else text
        return EncodedImage(binascii.a2b_base64(encoded, strict_mode=True))
    except (binascii.Error, ValueError) as error:
        return InvalidArgument(f"this is not base64 ({len(text)} characters): {error}", field=field)
