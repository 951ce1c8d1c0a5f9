"""Pickle over HTTP, as flow_grpo, verl-omni, deepgen_rl and their relatives speak it.

A request is a pickled dict ``{"images": [file bytes], "prompts": [text]}``, the answer one with the rewards under each
of the names that these clients look for, or ``{"error": text}``.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from critiq.errors import CritiqError, InvalidArgument
from critiq_server.api.compat import http
from critiq_server.api.compat.pickles import PickleLimits, read_pickle
from critiq_server.api.compat.rewards import Rewards, Sample, samples_of
from critiq_server.api.disconnects import unless_gone
from critiq_server.images.source import EncodedImage, ImageSource

PROTOCOL = 4
"""Every supported Python reads it."""

_OTHERS = {
    "queries": "answers to questions about pictures",
    "meta_datas": "checks of detected objects",
    "ref_images": "edits of a reference picture",
    "input_images": "edits of a reference picture",
}
"""Keys of this family's other servers, which do not score pictures, and what those do."""


def routes(rewards: Rewards) -> list[Route]:
    """``POST /REWARD``."""

    async def named(request: Request) -> Response:
        return await _answer(rewards, request.path_params["reward"], request)

    return [Route("/{reward}", named, methods=["POST"])]


def listener_routes(rewards: Rewards, reward: str) -> list[Route]:
    """One reward at every path: these clients' URLs end at the port, or in a path of their own."""

    async def any_path(request: Request) -> Response:
        return await _answer(rewards, reward, request)

    return [Route("/{path:path}", any_path, methods=["POST"])]


async def _answer(rewards: Rewards, reward: str, request: Request) -> Response:
    found = await http.outcome("pickle face", _scores(rewards, reward, request))
    if isinstance(found, CritiqError):
        code, headers = http.status(found)
        return _pickled({"error": str(found)}, code, headers)
    return _pickled({"outputs": found, "scores": found, "rewards": found})


async def _scores(rewards: Rewards, reward: str, request: Request) -> list[float]:
    data = await http.body(request, rewards.request_bytes)
    samples = _samples(read_pickle(data, PickleLimits(max_bytes=rewards.request_bytes)))
    return await unless_gone(request, rewards.score_one(reward, samples))


def _samples(message: Any) -> list[Sample]:
    if not isinstance(message, dict):
        raise InvalidArgument(f"the pickle holds a {type(message).__name__}; a dict is due", field="body")
    for key, task in _OTHERS.items():
        if key in message:
            raise InvalidArgument(f"this server scores pictures with their prompts; it gives no {task}", field=key)
    images = message.get("images")
    if not isinstance(images, list | tuple):
        raise InvalidArgument('there is no list of pictures; send {"images": [bytes of a file, ...]}', field="images")
    return samples_of([_image(image, index) for index, image in enumerate(images)], _prompts(message))


def _image(image: Any, index: int) -> ImageSource:
    if not isinstance(image, bytes):
        raise InvalidArgument(
            f"{type(image).__name__}, where the bytes of a picture file are due", field=f"images[{index}]"
        )
    return EncodedImage(image)


def _prompts(message: Mapping[str, Any]) -> list[str] | None:
    prompts = message.get("prompts")
    if prompts is None:
        return None
    if not isinstance(prompts, list | tuple) or not all(isinstance(prompt, str) for prompt in prompts):
        raise InvalidArgument("a list of texts is due", field="prompts")
    return [str(prompt) for prompt in prompts]


def _pickled(value: Any, code: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(pickle.dumps(value, PROTOCOL), code, headers, media_type="application/octet-stream")
