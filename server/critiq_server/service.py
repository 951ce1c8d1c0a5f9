"""The operations, free of any transport: what is asked comes in as plain values, answers go out as ``critiq.types``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TypeVar

from critiq import types
from critiq.errors import CritiqError, DeadlineExceeded, InvalidArgument, TooBusy, TooLarge
from critiq_server.accounting import Accounting
from critiq_server.answering import Answering
from critiq_server.engine.admission import Admission
from critiq_server.engine.demand import Call, Priority
from critiq_server.engine.engine import ServedModel
from critiq_server.features.records import Features
from critiq_server.images.source import ImageSource, RemoteImage
from critiq_server.models import Models
from critiq_server.others import Others
from critiq_server.prompts import normalise
from critiq_server.queries import (
    Item,
    Query,
    StageSignature,
    Target,
    check_unique,
    embedding_of,
    model_of,
    ranking_dimension,
    signature_of,
    threshold_dimensions,
)
from critiq_server.registry import Registry
from critiq_server.routing.operations import Routing
from critiq_server.scoring.drift_group import GroupDrift
from critiq_server.scoring.ranking import (
    EVERYTHING,
    Candidate,
    Selection,
    alike,
    comparison,
    placed,
    ranking,
    unlike,
)
from critiq_server.settings import Settings
from critiq_server.telemetry import traces
from critiq_server.telemetry.faults import internal
from critiq_server.telemetry.metrics import Metrics
from critiq_server.wording import quoted

T = TypeVar("T")


class Service:
    """What the faces call. Methods raise only ``critiq.errors``; timeouts are in seconds, ``None`` for the default."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        answering: Answering,
        admission: Admission,
        metrics: Metrics,
        drift: GroupDrift,
        routing: Routing,
        others: Others,
    ) -> None:
        self.settings = settings
        self.registry = registry
        self.others = others
        self.admission = admission
        self.metrics = metrics
        self.drift = drift
        self.routing = routing
        self.models = Models(registry, routing, others, allowed=settings.models.allow_changes)
        self._answering = answering
        self._accounting = Accounting(registry, admission, metrics, access=settings.log.access)
        self._fetching: set[asyncio.Future[None]] = set()

    async def score(self, query: Query, timeout: float | None = None, *, operation: str = "score") -> types.ScoreResult:
        """Scores one picture; in the metrics it is counted as ``operation``."""
        with self._accounting.call(operation, query.target.model, pictures=1), self._accounting.admitted([query]):
            return await self._within(timeout, query.priority, lambda call: self._answering.score(query, call))

    async def score_batch(self, items: Sequence[Item], timeout: float | None = None) -> list[types.ItemResult]:
        """Scores many; answers stand in the order of ``items``, each with its own outcome.

        Raises ``InvalidArgument`` for an empty batch or duplicated ids, ``TooLarge`` for too many items.
        """
        with self._accounting.call("score_batch", model_of(items)):
            self._check_count("items", len(items))
            check_unique([item.id for item in items])
            with self._accounting.admitted([item.query for item in items if isinstance(item.query, Query)]):
                return list(await asyncio.gather(*(self._item(item, timeout) for item in items)))

    async def score_stream(
        self, items: AsyncIterator[Item], timeout: float | None = None
    ) -> AsyncIterator[types.ItemResult]:
        """Scores items as they come, answers each when it is ready; takes no more while the window is full.

        ``timeout`` applies to each item, from when it was taken.
        """
        answers: asyncio.Queue[types.ItemResult | CritiqError | None] = asyncio.Queue()
        window = asyncio.Semaphore(self.settings.limits.stream_window)
        reader = asyncio.create_task(self._read_stream(items, timeout, window, answers))
        try:
            while (answer := await answers.get()) is not None:
                if isinstance(answer, CritiqError):
                    raise answer
                window.release()
                yield answer
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def rank(
        self,
        images: Sequence[ImageSource | RemoteImage | CritiqError],
        prompt: str = "",
        target: Target = Target(),
        priority: Priority = Priority.INTERACTIVE,
        selection: Selection = EVERYTHING,
        timeout: float | None = None,
    ) -> types.RankResult:
        """Orders pictures made from one prompt, best first."""
        with self._accounting.call("rank", target.model):
            self._check_count("images", len(images))
            if len(target.dimensions) > 1:
                raise InvalidArgument(
                    f"ranking goes by one dimension, {len(target.dimensions)} were named", field="target.dimensions"
                )
            prompt = normalise(prompt, self.settings.limits.prompt_bytes)
            pictures = [image for image in images if not isinstance(image, CritiqError)]
            with self.pinned(target, pictures) as (pinned, served):
                judgement = ranking_dimension(served, target, prompt)
                asked = threshold_dimensions(served, selection.thresholds, judgement, prompt)
                embedding = embedding_of(served, selection.embedding) if selection.diversity else None
                wanted = replace(pinned, dimensions=tuple(entry.dimension.name for entry in asked))
                queries = [
                    image if isinstance(image, CritiqError) else Query(image, prompt, wanted, priority)
                    for image in images
                ]
                with self._accounting.admitted([query for query in queries if isinstance(query, Query)]):
                    work = partial(self._answering.candidate, embedding)
                    outcomes = await asyncio.gather(
                        *(self._outcome(f"image {at}", query, timeout, work) for at, query in enumerate(queries))
                    )
        candidates = [
            outcome if isinstance(outcome, CritiqError) else Candidate(at, *outcome)
            for at, outcome in enumerate(outcomes)
        ]
        return types.RankResult(judgement.dimension.name, ranking(judgement, alike(judgement, candidates), selection))

    async def compare(self, first: Query, second: Query, timeout: float | None = None) -> types.CompareResult:
        """Compares two pictures in every dimension; both queries have one prompt and target."""
        with self._accounting.call("compare", first.target.model), self._accounting.admitted([first, second]):
            with self.pinned(first.target, [first.image, second.image]) as (pinned, served):
                judgements = served.model.judgements
                pair = (("first", first), ("second", second))
                results = await asyncio.gather(
                    *(self._item(Item(name, replace(query, target=pinned)), timeout) for name, query in pair)
                )
            for result in results:
                if result.error is not None:
                    raise placed(result.error, result.id)
            one, two = (result.unwrap() for result in results)
            for score in one:
                other = two[score.dimension]
                if score.degraded != other.degraded:
                    raise unlike(score if score.degraded else other)
        comparisons = tuple(comparison(judgements[score.dimension], score, two[score.dimension]) for score in one)
        return types.CompareResult(comparisons, one.image, two.image, one.prompt)

    async def features(
        self, target: Target, stage: str, queries: Sequence[Query | CritiqError], timeout: float | None = None
    ) -> list[Features | CritiqError]:
        """Outputs of one stage for many pictures, each with its own outcome: an image encoder's are embeddings.

        All queries have this target; its dimensions are not looked at, nor is the picture where the stage sees none.
        Raises as :meth:`score_batch`, ``NotFound`` if the model has no such stage, and ``ModelNotLoaded``.
        """
        with self._accounting.call("features", target.model):
            self._check_count("items", len(queries))
            pictures = [query.image for query in queries if isinstance(query, Query)]
            with self.pinned(target, pictures) as (pinned, served):
                signature_of(served, stage)
                asked = [replace(query, target=pinned) if isinstance(query, Query) else query for query in queries]
                with self._accounting.admitted([query for query in asked if isinstance(query, Query)]):
                    work = partial(self._answering.features, stage)
                    outcomes = (self._outcome(f"item {at}", query, timeout, work) for at, query in enumerate(asked))
                    return list(await asyncio.gather(*outcomes))

    def stage(self, model: str, version: str, stage: str) -> StageSignature:
        """What a stage of a served model reads and gives. Raises ``NotFound`` or ``ModelNotLoaded``."""
        with self.registry.lease(model, version) as served:
            return signature_of(served, stage)

    @contextmanager
    def pinned(
        self, target: Target, pictures: Sequence[ImageSource | RemoteImage]
    ) -> Iterator[tuple[Target, ServedModel]]:
        """One model version for a request of several pictures, whatever becomes of an alias meanwhile.

        Gives the target that names it, and the model; both hold inside the ``with`` block. Raises ``NotFound``,
        ``ModelNotLoaded`` or ``InvalidArgument``.
        """
        with self._answering.pinned(target, pictures) as pinned:
            yield replace(target, pinned=pinned), pinned.served

    def prefetch(self, items: Sequence[Item]) -> types.PrefetchResult:
        """Takes pictures on whose features shall be computed when nothing more urgent waits; returns at once.

        Raises as :meth:`score_batch`.
        """
        with self._accounting.call("prefetch", model_of(items)):
            self._check_count("items", len(items))
            check_unique([item.id for item in items])
            taken: list[Query] = []
            refused: list[types.ItemResult] = []
            for item in items:
                try:
                    if isinstance(item.query, CritiqError):
                        raise item.query
                    taken.append(self._answering.check_prefetch(item.query))
                except CritiqError as error:
                    refused.append(types.ItemResult(item.id, error=error))
            holding = ExitStack()
            holding.enter_context(self._accounting.admitted(taken))  # raises if there is no room
            work = asyncio.ensure_future(self._fetch(taken, holding))
            self._fetching.add(work)
            work.add_done_callback(self._fetching.discard)
        return types.PrefetchResult(len(taken), tuple(refused))

    async def _fetch(self, queries: Sequence[Query], holding: ExitStack) -> None:
        """Computes the features of ``queries``; nobody waits, so failures are only counted."""
        with holding:
            await asyncio.gather(*(self._fetch_one(query) for query in queries))

    async def _fetch_one(self, query: Query) -> None:
        with suppress(CritiqError), self._accounting.prefetched(query.target.model):
            seconds = self.settings.limits.max_timeout_seconds
            await self._within(seconds, query.priority, partial(self._answering.prefetch, query))

    async def _item(self, item: Item, timeout: float | None) -> types.ItemResult:
        outcome = await self._outcome(f"item {quoted(item.id)}", item.query, timeout, self._answering.score)
        if isinstance(outcome, CritiqError):
            return types.ItemResult(item.id, error=outcome)
        return types.ItemResult(item.id, result=outcome)

    async def _outcome(
        self,
        name: str,
        query: Query | CritiqError,
        timeout: float | None,
        work: Callable[[Query, Call], Awaitable[T]],
    ) -> T | CritiqError:
        """Does ``work`` for one item of several: its error is its own."""
        model = query.target.model if isinstance(query, Query) else ""
        with traces.span("item"):
            try:
                with self._accounting.item(name, model):
                    if isinstance(query, CritiqError):
                        raise query
                    return await self._within(timeout, query.priority, partial(work, query))
            except CritiqError as error:
                return error

    async def _within(self, timeout: float | None, priority: Priority, work: Callable[[Call], Awaitable[T]]) -> T:
        limits = self.settings.limits
        seconds = limits.timeout_seconds if timeout is None else min(timeout, limits.max_timeout_seconds)
        deadline = asyncio.get_running_loop().time() + seconds
        try:
            async with asyncio.timeout_at(deadline):
                return await work(Call(deadline, priority))
        except TimeoutError:
            raise DeadlineExceeded(
                f"no answer within {seconds:.3g} s; allow more time, or send less work at once"
            ) from None

    async def _read_stream(
        self,
        items: AsyncIterator[Item],
        timeout: float | None,
        window: asyncio.Semaphore,
        answers: asyncio.Queue[types.ItemResult | CritiqError | None],
    ) -> None:
        under_way: set[str] = set()
        try:
            async with asyncio.TaskGroup() as tasks:
                await window.acquire()
                async for item in items:
                    if not item.id or item.id in under_way:
                        kind = "is used by an item under way" if item.id else "is empty"
                        raise InvalidArgument(f"the id {quoted(item.id)} {kind}; every item needs its own", field="id")
                    under_way.add(item.id)
                    tasks.create_task(self._stream_item(item, timeout, under_way, answers))
                    await window.acquire()
            await answers.put(None)
        except* CritiqError as group:
            await answers.put(next(error for error in group.exceptions if isinstance(error, CritiqError)))
        except* Exception as group:
            await answers.put(internal("stream", group))

    async def _stream_item(
        self,
        item: Item,
        timeout: float | None,
        under_way: set[str],
        answers: asyncio.Queue[types.ItemResult | CritiqError | None],
    ) -> None:
        with self._accounting.call("score_stream", model_of([item])):
            try:
                size = len(item.query.image.data) if isinstance(item.query, Query) else 0
                self._accounting.note_bytes(size)
                while True:
                    await self.admission.room(size)
                    try:
                        with self.admission.admit(1, size):
                            answer = await self._item(item, timeout)
                        break
                    except TooBusy:
                        continue  # Somebody else took the room first: a stream is slowed down, not refused.
            except CritiqError as error:
                answer = types.ItemResult(item.id, error=error)
        under_way.discard(item.id)
        await answers.put(answer)

    def _check_count(self, field: str, count: int) -> None:
        if count == 0:
            raise InvalidArgument("there is nothing to score; send at least one picture", field=field)
        limit = self.settings.limits.batch_items
        if count > limit:
            raise TooLarge(f"{count} pictures in one call, the limit is {limit}; send several calls", field=field)
