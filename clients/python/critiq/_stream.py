"""Score streams: a window of items under way, answers as they are ready, and a broken stream taken up again.

A *connection* is one gRPC stream, or, over REST, a pool of unary calls. The stream outlives it: what is unanswered when
a connection breaks is sent again over the next one, and nothing else is.
"""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

from tenacity import Retrying

from critiq import wire
from critiq._requests import Call, Options, numbered_items, score
from critiq._retry import RetryPolicy, is_worth_retrying
from critiq.errors import (
    CritiqError,
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    ModelNotLoaded,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)
from critiq.types import ItemResult
from critiq.v1 import scoring_pb2

Answer = scoring_pb2.ScoreItemResult
Prepared = tuple[str, scoring_pb2.ScoreRequest | CritiqError]


class Connection(Protocol):
    holds_refused: bool
    """Whether an item that was refused for now is sent again by the stream (else the answer is final)."""

    def send(self, item: scoring_pb2.ScoreItem) -> None: ...
    def receive(self, timeout: float | None) -> Answer: ...
    def close(self) -> None: ...


class UnderWay:
    """The items that were sent and have no answer yet. No input or output here."""

    def __init__(self, window: int) -> None:
        if window < 1:
            raise InvalidArgument(f"{window}; 1 or more is due", field="window")
        self._window = window
        self._sent: dict[str, tuple[str, scoring_pb2.ScoreItem]] = {}
        self._refused: dict[str, CritiqError] = {}
        self._count = 0

    @property
    def full(self) -> bool:
        return len(self._sent) >= self._window

    @property
    def empty(self) -> bool:
        return not self._sent

    def add(self, name: str, request: scoring_pb2.ScoreRequest) -> scoring_pb2.ScoreItem:
        """The item to send. Its id on the wire is our own: callers may use an id twice."""
        item = scoring_pb2.ScoreItem(id=str(self._count), request=request)
        self._count += 1
        self._sent[item.id] = (name, item)
        return item

    def accept(self, answer: Answer, *, hold_refused: bool) -> ItemResult | None:
        """The caller's result; ``None`` if the item was refused for now, or is not under way (an answer of old)."""
        if answer.id not in self._sent:
            return None
        outcome = wire.item_from_proto(answer)
        if hold_refused and outcome.error is not None and is_worth_retrying(outcome.error):
            self._refused[answer.id] = outcome.error
            return None
        name, _ = self._sent.pop(answer.id)
        self._refused.pop(answer.id, None)
        return ItemResult(name, outcome.result, outcome.error)

    def stalled(self) -> CritiqError | None:
        """The refusal, once all that is under way was refused for now."""
        if not self._refused or len(self._refused) < len(self._sent):
            return None
        return max(self._refused.values(), key=lambda error: error.retry_after or 0.0)

    def again(self) -> list[scoring_pb2.ScoreItem]:
        """What a new connection has to send first."""
        self._refused.clear()
        return [item for _, item in self._sent.values()]


def stream(
    items: Iterable[Any],
    options: Options,
    connect: Callable[[], Connection],
    *,
    window: int,
    timeout: float | None,
    policy: RetryPolicy,
) -> Iterator[ItemResult]:
    """Results as they are ready; see ``Client.score_stream``."""
    state = _Stream(numbered_items(items, options), UnderWay(window), timeout, connect)
    return _results(state, policy.blocking(timeout))


def _results(state: _Stream, retrying: Retrying) -> Iterator[ItemResult]:
    try:
        # Every answer is a fresh success for the policy: only tries in a row without one count.
        while (result := retrying(state.next)) is not None:
            yield result
    finally:
        state.disconnect()


class _Stream:
    def __init__(
        self, source: Iterator[Prepared], under_way: UnderWay, timeout: float | None, connect: Callable[[], Connection]
    ) -> None:
        self._source = source
        self._under_way = under_way
        self._timeout = timeout
        self._connect = connect
        self._connection: Connection | None = None
        self._exhausted = False

    def next(self) -> ItemResult | None:
        """The next result, ``None`` after the last. After an error, the next call goes on over a new connection."""
        try:
            return self._next()
        except CritiqError:
            self.disconnect()
            raise

    def disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _next(self) -> ItemResult | None:
        connection = self._connected()
        while True:
            # Answers first, so that a slow source does not hold them back.
            answer = self._receive(connection, 0)
            if answer is None and not self._exhausted and not self._under_way.full:
                failed = self._send_one(connection)
                if failed is not None:
                    return failed
                continue
            if answer is None:
                if self._under_way.empty:
                    return None
                refusal = self._under_way.stalled()
                if refusal is not None:
                    raise refusal
                answer = self._receive(connection, self._timeout)
                if answer is None:
                    raise DeadlineExceeded(f"no answer on the stream for {self._timeout:g} s")
            result = self._under_way.accept(answer, hold_refused=connection.holds_refused)
            if result is not None:
                return result

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self._connect()
            for item in self._under_way.again():
                self._connection.send(item)
        return self._connection

    def _receive(self, connection: Connection, timeout: float | None) -> Answer | None:
        if self._under_way.empty:
            return None
        try:
            return connection.receive(timeout)
        except queue.Empty:
            return None

    def _send_one(self, connection: Connection) -> ItemResult | None:
        prepared = next(self._source, None)
        if prepared is None:
            self._exhausted = True
            return None
        name, request = prepared
        if isinstance(request, CritiqError):
            return ItemResult(name, error=request)
        connection.send(self._under_way.add(name, request))
        return None


class UnaryConnection:
    """The form of a stream over REST: ``window`` unary calls at once, each retried by itself."""

    holds_refused = False

    def __init__(self, perform: Callable[[Call[Any]], scoring_pb2.ScoreResponse], window: int) -> None:
        self._perform = perform
        self._threads = ThreadPoolExecutor(window, "critiq-stream")
        self._incoming: queue.SimpleQueue[Answer | CritiqError] = queue.SimpleQueue()

    def send(self, item: scoring_pb2.ScoreItem) -> None:
        self._threads.submit(self._score, item)

    def receive(self, timeout: float | None) -> Answer:
        received = self._incoming.get_nowait() if timeout == 0 else self._incoming.get()
        if isinstance(received, CritiqError):
            raise received
        return received

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _score(self, item: scoring_pb2.ScoreItem) -> None:
        try:
            response = self._perform(score(item.request))
            self._incoming.put(Answer(id=item.id, response=response))
        except Exception as error:
            self._incoming.put(own_or_common(item, error))


def own_or_common(item: scoring_pb2.ScoreItem, error: Exception) -> Answer | CritiqError:
    """An answer if the error is the item's own; the error if every other item would meet it too."""
    if not isinstance(error, CritiqError):  # a fault of ours must reach the caller, not vanish with its thread
        return Internal(f"{type(error).__name__}: {error}")
    common = isinstance(error, Unavailable | Unauthenticated | PermissionDenied)
    if common and not isinstance(error, ModelNotLoaded):
        return error
    return Answer(id=item.id, error=wire.error_to_proto(error))
