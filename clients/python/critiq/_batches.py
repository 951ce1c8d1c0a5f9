"""Batch calls: many items cut into calls of a size that servers take, and refused items sent again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from critiq import wire
from critiq._requests import Call, prefetch, score_batch
from critiq._retry import is_worth_retrying
from critiq.errors import CritiqError, Internal, InvalidArgument
from critiq.types import ItemResult, PrefetchResult
from critiq.v1 import scoring_pb2

BATCH_BYTES = 32 * 1024 * 1024


class Batch:
    """The items of one call, and their results as they come in."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._requests: dict[int, scoring_pb2.ScoreRequest] = {}
        self._results: dict[int, ItemResult] = {}
        self._bytes = 0

    def add(self, name: str, request: scoring_pb2.ScoreRequest | CritiqError) -> None:
        index = len(self._names)
        self._names.append(name)
        if isinstance(request, CritiqError):
            self._results[index] = ItemResult(name, error=request)
        else:
            self._requests[index] = request
            self._bytes += request.ByteSize()

    def has_room(self, request: scoring_pb2.ScoreRequest | CritiqError, batch_size: int) -> bool:
        size = 0 if isinstance(request, CritiqError) else request.ByteSize()
        return not self._names or (len(self._names) < batch_size and self._bytes + size <= BATCH_BYTES)

    @property
    def open(self) -> bool:
        """Whether something is left to send."""
        return bool(self._requests)

    def call(self) -> Call[scoring_pb2.ScoreBatchResponse]:
        """For what has no final answer yet."""
        items = [scoring_pb2.ScoreItem(id=str(index), request=request) for index, request in self._requests.items()]
        return score_batch(items)

    def items(self) -> list[scoring_pb2.ScoreItem]:
        """The same under the callers' own names."""
        return [
            scoring_pb2.ScoreItem(id=self._names[index], request=request) for index, request in self._requests.items()
        ]

    def unsendable(self) -> list[ItemResult]:
        """Items that never were requests."""
        return list(self._results.values())

    def accept(self, response: scoring_pb2.ScoreBatchResponse) -> None:
        """Takes the answers in; raises the refusal if items were refused for now, so that they are sent again."""
        refusals = []
        for answer in response.results:
            index = int(answer.id)
            outcome = wire.item_from_proto(answer)
            self._results[index] = ItemResult(self._names[index], outcome.result, outcome.error)
            if outcome.error is not None and is_worth_retrying(outcome.error):
                refusals.append(outcome.error)
            else:
                self._requests.pop(index, None)
        if refusals:
            raise max(refusals, key=lambda error: error.retry_after or 0.0)

    @property
    def answered(self) -> bool:
        """Whether each item has a result or an error of its own."""
        return len(self._results) == len(self._names)

    def results(self) -> list[ItemResult]:
        """In the order of the items."""
        if not self.answered:
            raise Internal(f"the server answered {len(self._results)} of {len(self._names)} items")
        return [self._results[index] for index in range(len(self._names))]


def batches(items: Iterable[tuple[str, scoring_pb2.ScoreRequest | CritiqError]], batch_size: int) -> Iterator[Batch]:
    """Batches of at most ``batch_size`` items and :data:`BATCH_BYTES` bytes, made as they are asked for."""
    if batch_size < 1:
        raise InvalidArgument(f"{batch_size}; 1 or more is due", field="batch_size")
    batch = Batch()
    for name, request in items:
        if not batch.has_room(request, batch_size):
            yield batch
            batch = Batch()
        batch.add(name, request)
    yield batch


class Prefetched:
    """Items to fetch ahead, as calls of a size that servers take, and what became of them."""

    def __init__(self, items: Iterable[tuple[str, scoring_pb2.ScoreRequest | CritiqError]], batch_size: int) -> None:
        self._batches = batches(items, batch_size)
        self._accepted = 0
        self._refused: list[ItemResult] = []

    def calls(self) -> Iterator[Call[PrefetchResult]]:
        """What is left to send, made as it is asked for."""
        for batch in self._batches:
            self._refused += batch.unsendable()
            if batch.open:
                yield prefetch(batch.items())

    def accept(self, result: PrefetchResult) -> None:
        """Takes one answer in."""
        self._accepted += result.accepted
        self._refused += result.refused

    def result(self) -> PrefetchResult:
        """Of all calls together."""
        return PrefetchResult(self._accepted, tuple(self._refused))
