"""Closed-loop load: a number of callers, each sending its next request when the last one is answered.

A slice is a fixed amount of work, timed from the first request to the last answer: all that the server does for it
falls inside, so that slices need no warm-up and batches of any size leave no rounding.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Any

from benchmarks.limit import prompt
from benchmarks.pictures import Album
from benchmarks.server import Server
from benchmarks.transports import Ask, Send, Transport


@dataclass(frozen=True, slots=True)
class Slice:
    """Pictures a second, milliseconds of latency, and of processor time a picture in the server. ``client_share`` is
    the part of its core that the client used: near 1 the client is what was measured."""

    rate: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    client_share: float
    mean_batch: float
    queue_ms: float


class Load:
    """One kind of request from a number of callers. ``numbers`` says which pictures come next."""

    def __init__(
        self,
        server: Server,
        transport: Transport,
        album: Album,
        numbers: Iterator[int],
        *,
        prompts: bool,
        concurrency: int,
    ) -> None:
        self._server = server
        self._transport = transport
        self._album = album
        self.prompts = prompts
        self._concurrency = concurrency
        self._numbers = numbers

    async def run(self, requests: int, send: Send, expect_stored: bool | None) -> Slice:
        """Sends so many requests and checks every answer; ``None`` expects nothing of the store.

        Raises ``RuntimeError`` if an answer has no score, or one that was (not) in the store against expectation.
        """
        bodies = [self._body() for _ in range(requests)]
        latencies: list[float] = []
        answers: list[bytes] = []
        before, server_cpu = self._server.scrape(), self._server.cpu_seconds()
        client_cpu, started = time.process_time(), time.perf_counter()
        work = iter(bodies)
        await asyncio.gather(*(_caller(send, work, latencies, answers) for _ in range(self._concurrency)))
        elapsed = time.perf_counter() - started
        client_cpu, server_cpu = time.process_time() - client_cpu, self._server.cpu_seconds() - server_cpu
        delta = self._server.scrape().since(before)
        self._check(answers, expect_stored)
        pictures = requests * self._transport.group
        return Slice(
            rate=pictures / elapsed,
            p50_ms=1000 * median(latencies),
            p99_ms=1000 * quantiles(latencies, n=100, method="inclusive")[98] if requests > 1 else 1000 * latencies[0],
            cpu_ms=1000 * server_cpu / pictures,
            client_share=client_cpu / elapsed,
            mean_batch=delta.stage_mean("critiq_batch_size"),
            queue_ms=1000 * delta.stage_mean("critiq_queue_seconds"),
        )

    async def prime(self, send: Send) -> None:
        """Sends one request, whatever the answer."""
        await send(self._body())

    def _body(self) -> bytes:
        numbers = [next(self._numbers) for _ in range(self._transport.group)]
        return self._transport.encode(
            [Ask(self._album[number], prompt(number) if self.prompts else "") for number in numbers]
        )

    def _check(self, answers: Sequence[bytes], expect_stored: bool | None) -> None:
        for answer in answers:
            stored = self._transport.stored(answer)
            if not stored:
                raise RuntimeError("an answer has no score")
            if expect_stored is not None and any(entry != expect_stored for entry in stored):
                raise RuntimeError(f"a score came {'not ' if expect_stored else ''}from the store")


async def _caller(send: Send, work: Iterable[bytes], latencies: list[float], answers: list[bytes]) -> None:
    for body in work:
        sent = time.perf_counter()
        answer: Any = await send(body)
        latencies.append(time.perf_counter() - sent)
        answers.append(answer)
