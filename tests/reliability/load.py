"""Callers for reliability tests: bounded load on a server on loopback, and what became of each call."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc
import httpx
import numpy as np

from critiq.v1 import scoring_pb2
from tests.reliability.connections import Connections
from tests.support import requests
from tests.support.faces import PROTOBUF, http_refusal, refusal_of
from tests.support.servers import ServerProcess

FULL = os.environ.get("CRITIQ_RELIABILITY") == "full"
"""Whether tests run in their full form: a minute of load and more, for the figures in docs/reliability.md."""

SCORE = "/critiq.v1.Scoring/Score"
LOST = (OSError, EOFError)


@dataclass(frozen=True)
class Outcome:
    """``code``: OK, an error's, WRONG (another value than the picture has) or LOST (the connection ended).

    ``at``: when the call was made, monotonic seconds; ``seconds``: how long it took; ``hint``: the retry hint in ms.
    """

    code: str
    at: float
    seconds: float
    hint: int | None = None


Ask = Callable[[int], Awaitable[Outcome]]


class Callers:
    """Ask for scores of flat pictures, each number another picture; levels 200 and above are left to the tests."""

    def __init__(
        self, channel: grpc.aio.Channel, http: httpx.AsyncClient, value: Callable[[float], float], key: str
    ) -> None:
        self.channel, self.http, self._value = channel, http, value
        sent = f"content-type: {PROTOBUF}\r\n" + (f"x-api-key: {key}\r\n" if key else "")
        self._posts = Connections(http.base_url.host, http.base_url.port or 80, sent)
        self._metadata = [("x-api-key", key)] if key else None

    def close(self) -> None:
        self._posts.close()

    async def over_grpc(self, number: int) -> Outcome:
        return await self.level(number % 200, _size(number))

    async def over_rest(self, number: int) -> Outcome:
        return await self.level(number % 200, _size(number), rest=True)

    async def over_both(self, number: int) -> Outcome:
        return await (self.over_rest if number % 2 else self.over_grpc)(number)

    async def level(self, level: int, size: tuple[int, int] = (30, 30), *, rest: bool = False) -> Outcome:
        """The outcome for a picture of that grey level."""
        body = requests.score(requests.flat(level, size), "a cat").SerializeToString()
        at, hint = time.monotonic(), None
        try:
            if rest:
                status, headers, data = await self._posts.post("/v1/score", body)
                if status != 200:
                    refusal = http_refusal(httpx.Response(status, headers=headers, content=data))
                    return Outcome(refusal.code, at, time.monotonic() - at, refusal.retry_after_ms)
            else:
                data = await self.channel.unary_unary(SCORE)(body, timeout=60, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            return Outcome(refusal.code or "LOST", at, time.monotonic() - at, refusal.retry_after_ms)
        except LOST:
            return Outcome("LOST", at, time.monotonic() - at)
        scores = scoring_pb2.ScoreResponse.FromString(data).scores
        right = abs(scores[0].raw - self._value(level)) < 1e-4
        return Outcome("OK" if right else "WRONG", at, time.monotonic() - at, hint)


def _size(number: int) -> tuple[int, int]:
    """Two million different pictures, all of them small."""
    of_level = number // 200
    return 30 + of_level % 100, 30 + of_level // 100 % 100


@asynccontextmanager
async def callers(server: ServerProcess, value: Callable[[float], float], *, key: str = "") -> AsyncIterator[Callers]:
    """``value``: what the first dimension gives for a flat picture of a grey level; ``key``: an API key to send."""
    limits = httpx.Limits(max_connections=1000, max_keepalive_connections=200)
    async with (
        grpc.aio.insecure_channel(server.grpc) as channel,
        httpx.AsyncClient(
            base_url=server.rest,
            timeout=60,
            trust_env=False,
            limits=limits,
            headers={"x-api-key": key} if key else {},
        ) as http,
    ):
        asked = Callers(channel, http, value, key)
        try:
            yield asked
        finally:
            asked.close()


async def open_loop(ask: Ask, rate: float, seconds: float, first: int = 0) -> list[Outcome]:
    """``rate`` calls a second whatever becomes of them, as callers do who do not know of each other."""
    started = time.monotonic()
    tasks = []
    for number in range(int(rate * seconds)):
        pause = started + number / rate - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.ensure_future(ask(first + number)))
    async with asyncio.timeout(90):
        return list(await asyncio.gather(*tasks))


@asynccontextmanager
async def under_load(ask: Ask, callers_count: int = 8, first: int = 0) -> AsyncIterator[list[Outcome]]:
    """So many callers, each asking again as soon as it is answered; the outcomes so far.

    At the end they are waited for, so the outcomes are complete after the ``async with``.
    """
    found: list[Outcome] = []
    numbers = itertools.count(first)
    done = False

    async def call() -> None:
        while not done:
            outcome = await ask(next(numbers))
            found.append(outcome)
            if outcome.code == "LOST":
                await asyncio.sleep(0.02)  # connections that are refused at once would keep the test itself busy

    tasks = [asyncio.ensure_future(call()) for _ in range(callers_count)]
    try:
        yield found
    finally:
        done = True
        async with asyncio.timeout(70):
            await asyncio.gather(*tasks)


def codes(outcomes: Sequence[Outcome]) -> Counter[str]:
    return Counter(outcome.code for outcome in outcomes)


def percentile(outcomes: Sequence[Outcome], share: float, code: str = "OK") -> float:
    """Seconds within which ``share`` (0..1) of the outcomes with that code came."""
    return float(np.quantile([outcome.seconds for outcome in outcomes if outcome.code == code], share))
