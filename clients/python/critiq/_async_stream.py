"""Score streams over asyncio: see ``_stream.py``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from critiq._requests import Call, Options, numbered_item, score
from critiq._retry import RetryPolicy
from critiq._stream import Answer, UnderWay, own_or_common
from critiq.errors import CritiqError, DeadlineExceeded
from critiq.images import split_pictures
from critiq.types import ItemResult
from critiq.v1 import scoring_pb2

Deliver = Callable[[Answer | CritiqError], None]
"""Takes each answer of a connection, and finally what broke it."""


class AsyncConnection(Protocol):
    holds_refused: bool

    def send(self, item: scoring_pb2.ScoreItem) -> None: ...
    async def close(self) -> None: ...


async def async_stream(
    items: Iterable[Any] | AsyncIterable[Any],
    options: Options,
    connect: Callable[[Deliver], AsyncConnection],
    *,
    window: int,
    timeout: float | None,
    policy: RetryPolicy,
) -> AsyncIterator[ItemResult]:
    """The asyncio form of :func:`stream`."""
    retrying = policy.asynchronous(timeout)
    state = _AsyncStream(items, options, window, timeout, connect)
    try:
        while True:
            result: ItemResult | None = await retrying(state.next)
            if result is None:
                return
            yield result
    finally:
        await state.close()


class _AsyncStream:
    """All that happens, items to send and answers alike, comes through one queue of events."""

    def __init__(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        options: Options,
        window: int,
        timeout: float | None,
        connect: Callable[[Deliver], AsyncConnection],
    ) -> None:
        self._under_way = UnderWay(window)
        self._room = asyncio.Semaphore(window)
        self._timeout = timeout
        self._connect = connect
        self._connection: AsyncConnection | None = None
        # Counts connections; events carry it, so that the end of an old connection is not taken for the end of the new.
        self._generation = 0
        self._exhausted = False
        self._events: asyncio.Queue[_Event] = asyncio.Queue()
        self._feeder = asyncio.create_task(self._feed(items, options))

    async def next(self) -> ItemResult | None:
        """The next result, ``None`` after the last. After an error, the next call goes on over a new connection."""
        try:
            return await self._next()
        except CritiqError:
            await self._disconnect()
            raise

    async def close(self) -> None:
        self._feeder.cancel()
        await asyncio.gather(self._feeder, return_exceptions=True)
        await self._disconnect()

    async def _next(self) -> ItemResult | None:
        connection = self._connected()
        while not (self._exhausted and self._under_way.empty):
            refusal = self._under_way.stalled()
            if refusal is not None and (self._exhausted or self._under_way.full):
                raise refusal
            result = self._handle(connection, await self._event())
            if result is not None:
                self._room.release()
                return result
        return None

    async def _event(self) -> _Event:
        if self._under_way.empty:
            return await self._events.get()
        try:
            async with asyncio.timeout(self._timeout):
                return await self._events.get()
        except TimeoutError:
            raise DeadlineExceeded(f"no answer on the stream for {self._timeout:g} s") from None

    def _handle(self, connection: AsyncConnection, event: _Event) -> ItemResult | None:
        if isinstance(event, _Prepared):
            if isinstance(event.request, CritiqError):
                return ItemResult(event.name, error=event.request)
            connection.send(self._under_way.add(event.name, event.request))
        elif isinstance(event, _Exhausted):
            self._exhausted = True
            if event.error is not None:
                raise event.error
        elif isinstance(event.received, Answer):
            return self._under_way.accept(event.received, hold_refused=connection.holds_refused)
        elif event.generation == self._generation:
            raise event.received
        return None

    def _connected(self) -> AsyncConnection:
        if self._connection is None:
            self._generation += 1
            generation = self._generation
            self._connection = self._connect(lambda received: self._events.put_nowait(_Received(generation, received)))
            for item in self._under_way.again():
                self._connection.send(item)
        return self._connection

    async def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await connection.close()

    async def _feed(self, items: Iterable[Any] | AsyncIterable[Any], options: Options) -> None:
        try:
            index = 0
            async for item in _as_async(items):
                await self._room.acquire()
                # Reading files and packing pixels would hold up the event loop.
                name, request = await asyncio.to_thread(numbered_item, index, item, options)
                self._events.put_nowait(_Prepared(name, request))
                index += 1
            self._events.put_nowait(_Exhausted(None))
        except Exception as error:  # whatever the caller's own source raises is handed on to the caller
            self._events.put_nowait(_Exhausted(error))


@dataclass(frozen=True, slots=True)
class _Prepared:
    name: str
    request: scoring_pb2.ScoreRequest | CritiqError


@dataclass(frozen=True, slots=True)
class _Exhausted:
    error: Exception | None


@dataclass(frozen=True, slots=True)
class _Received:
    generation: int
    received: Answer | CritiqError


_Event = _Prepared | _Exhausted | _Received


class AsyncUnaryConnection:
    """The asyncio form of :class:`UnaryConnection`; the window bounds the calls at once."""

    holds_refused = False

    def __init__(self, perform: Callable[[Call[Any]], Awaitable[scoring_pb2.ScoreResponse]], deliver: Deliver) -> None:
        self._perform = perform
        self._deliver = deliver
        self._tasks: set[asyncio.Task[None]] = set()

    def send(self, item: scoring_pb2.ScoreItem) -> None:
        task = asyncio.create_task(self._score(item))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _score(self, item: scoring_pb2.ScoreItem) -> None:
        try:
            response = await self._perform(score(item.request))
            self._deliver(Answer(id=item.id, response=response))
        except Exception as error:
            self._deliver(own_or_common(item, error))


async def _as_async(items: Iterable[Any] | AsyncIterable[Any]) -> AsyncIterator[Any]:
    if isinstance(items, AsyncIterable):
        async for item in items:
            yield item
    else:
        for item in split_pictures(items, "items"):
            yield item
