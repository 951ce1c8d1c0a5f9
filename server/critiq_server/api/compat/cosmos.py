"""Cosmos-RL's reward service: jobs are put in with ``enqueue`` and fetched with ``pull``.

Its clients poll until they get status 200, whatever else they are told. So everything that can be known is refused at
``enqueue``, and a job that failed later answers ``pull`` with 200, no scores and an ``error``, instead of 400 for ever.
"""

from __future__ import annotations

import asyncio
import hmac
import io
import time
import uuid
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from critiq.errors import CritiqError, InvalidArgument, NotFound, TooBusy, Unauthenticated
from critiq_server.api.compat import http
from critiq_server.api.compat.rewards import Rewards, Sample, samples_of
from critiq_server.images.source import RawImage
from critiq_server.settings import CosmosSettings

_FORM_BYTES = 2**20
_SECONDS_FOR_A_REFUSAL = 0.05
"""``enqueue`` waits so long for a job that fails at once, to say so while the client listens."""

Scores = dict[str, list[float]]


@dataclass(eq=False)
class _Job:
    work: asyncio.Task[Scores | CritiqError]
    input_info: dict[str, Any]
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None


class _Jobs:
    """Jobs under way, and outcomes that wait to be fetched: so many, for so long."""

    def __init__(self, settings: CosmosSettings) -> None:
        self._settings = settings
        self._jobs: dict[str, _Job] = {}

    def add(self, work: Coroutine[Any, Any, Scores], input_info: dict[str, Any]) -> tuple[str, _Job]:
        self._make_room(work)
        name = uuid.uuid4().hex
        job = self._jobs[name] = _Job(asyncio.create_task(http.outcome("Cosmos face", work)), input_info)

        def ended(_: object) -> None:
            job.ended = time.monotonic()

        job.work.add_done_callback(ended)
        return name, job

    def get(self, name: str) -> _Job:
        self._forget_old()
        if name not in self._jobs:
            raise NotFound(f"there is no job {name[:40]!r}; outcomes are kept for {self._settings.keep_seconds:g} s")
        return self._jobs[name]

    def drop(self, name: str) -> None:
        self._jobs.pop(name, None)

    def _make_room(self, work: Coroutine[Any, Any, Scores]) -> None:
        self._forget_old()
        if len(self._jobs) < self._settings.jobs:
            return
        oldest = next((name for name, job in self._jobs.items() if job.ended is not None), None)
        if oldest is None:
            work.close()
            raise TooBusy(f"{len(self._jobs)} jobs are under way, as many as are accepted", retry_after=1.0)
        del self._jobs[oldest]

    def _forget_old(self) -> None:
        limit = time.monotonic() - self._settings.keep_seconds
        for name in [name for name, job in self._jobs.items() if job.ended is not None and job.ended < limit]:
            del self._jobs[name]


def routes(rewards: Rewards, settings: CosmosSettings) -> list[Route]:
    """``/api/reward/ping``, ``/enqueue`` and ``/pull``."""
    jobs = _Jobs(settings)
    token = settings.token.get_secret_value()

    def route(name: str, work: Callable[[Request], Coroutine[Any, Any, Response]]) -> Route:
        async def endpoint(request: Request) -> Response:
            found = await http.outcome(f"Cosmos face, {name}", _authorised(work, request, token))
            if not isinstance(found, CritiqError):
                return found
            lasting = found.http_status if isinstance(found, Unauthenticated | NotFound) else 400
            return http.json_response({"message": str(found)}, *http.status(found, lasting))

        return Route(f"/api/reward/{name}", endpoint, methods=["POST"])

    async def ping(request: Request) -> Response:
        await http.body(request, _FORM_BYTES)
        return http.json_response({"message": "Ping request received"})

    async def enqueue(request: Request) -> Response:
        return await _enqueue(rewards, jobs, await http.body(request, rewards.request_bytes))

    async def pull(request: Request) -> Response:
        form = dict(parse_qsl((await http.body(request, _FORM_BYTES)).decode("utf-8", "replace")))
        return _outcome(jobs.get(form.get("uuid", "")), form.get("type", ""))

    return [route("ping", ping), route("enqueue", enqueue), route("pull", pull)]


async def _authorised(
    work: Callable[[Request], Coroutine[Any, Any, Response]], request: Request, token: str
) -> Response:
    sent = request.headers.get("authorization", "")
    if token and not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
        raise Unauthenticated("the header Authorization holds no valid bearer token")
    return await work(request)


async def _enqueue(rewards: Rewards, jobs: _Jobs, data: bytes) -> Response:
    head, newline, array = data.partition(b"\n")
    if not newline:
        raise InvalidArgument("a line of JSON and then a .npy file are due", field="body")
    message = http.json_of(head)
    kind = message.get("media_type", "image")
    if kind != "image":
        raise InvalidArgument(f"{str(kind)[:40]!r}; only media_type image is scored", field="media_type")
    names = _names(message)
    rewards.check(names)
    samples, info = _samples(array, message.get("prompts"))
    name, job = jobs.add(_score(rewards, names, samples), info)
    await asyncio.wait({job.work}, timeout=_SECONDS_FOR_A_REFUSAL)
    if job.work.done() and isinstance(found := job.work.result(), CritiqError):
        jobs.drop(name)
        raise found
    return http.json_response({"uuid": name})


def _names(message: dict[str, Any]) -> list[str]:
    wanted = message.get("reward_fn")
    if not isinstance(wanted, dict) or not wanted:
        raise InvalidArgument("a JSON object of rewards with their weights is due", field="reward_fn")
    return list(wanted)


def _samples(data: bytes, prompts: Any) -> tuple[list[Sample], dict[str, Any]]:
    if prompts is not None and not (isinstance(prompts, list) and all(isinstance(text, str) for text in prompts)):
        raise InvalidArgument("a list of texts is due", field="prompts")
    shape, pixels = _pixels(data)
    size = prod(shape[1:])
    images = [RawImage(pixels[start : start + size], shape[1:]) for start in range(0, len(pixels), size)]
    values = np.frombuffer(pixels, np.uint8)
    info = {"shape": list(shape), "dtype": "uint8", "min": int(values.min()), "max": int(values.max())}
    return samples_of(images, prompts), info


def _pixels(data: bytes) -> tuple[tuple[int, ...], bytes]:
    """Shape ``[count, height, width, 3]`` and bytes of a ``.npy`` file of uint8.

    Read here by its header: NumPy's reader would set aside whatever memory the header asks for.
    """
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(file)
    except Exception as error:  # NumPy's parser of headers raises whatever Python's does
        raise InvalidArgument("what follows the JSON line is no .npy file (version 1 or 2)", field="body") from error
    pixels = data[file.tell() :]
    if dtype != np.uint8 or fortran or len(shape) != 4 or shape[3] != 3:
        raise InvalidArgument(
            f"an array of {dtype} {list(shape)}; uint8 of [count, height, width, 3] in C order is due", field="body"
        )
    if len(pixels) != prod(shape) or not pixels:
        raise InvalidArgument(f"{len(pixels)} bytes for an array of {list(shape)}", field="body")
    return shape, pixels


async def _score(rewards: Rewards, names: Sequence[str], samples: Sequence[Sample]) -> Scores:
    outcomes = await rewards.score(names, samples)
    scores: Scores = {name: [] for name in names}
    for index, outcome in enumerate(outcomes):
        for name, value in outcome.items():
            if isinstance(value, CritiqError):
                raise value.within(f"images[{index}]")
            scores[name].append(value)
    return scores


def _outcome(job: _Job, kind: str) -> Response:
    if job.ended is None or not job.work.done():
        return http.json_response({"message": "the job is not finished; pull again"}, 400)
    found = job.work.result()
    answer: dict[str, Any] = {
        # Every reward of the job, so that a client's score_key "a+b" finds both.
        "scores": {} if isinstance(found, CritiqError) else found,
        "input_info": job.input_info,
        "duration": f"{job.ended - job.started:.2f}",
        "decoded_duration": "0.00",
        "type": kind,
    }
    if isinstance(found, CritiqError):
        answer["error"] = str(found)
    return http.json_response(answer)
