"""The asyncio client: the methods of ``client.py``, where they are documented in full."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from critiq import _notebook, _requests, wire
from critiq._aliases import AsyncAliasMethods
from critiq._async_stream import AsyncConnection, AsyncUnaryConnection, Deliver, async_stream
from critiq._base import LOAD_TIMEOUT, NO_RETRIES, POLL_PAUSE, is_ready
from critiq._batches import Batch, Prefetched, batches
from critiq._endpoint import DEFAULT_URL, Endpoint
from critiq._jobs import AsyncJobMethods
from critiq._requests import Call, Options
from critiq._retry import Deadline
from critiq.errors import CritiqError, DeadlineExceeded, Unavailable
from critiq.images import ImageInput
from critiq.types import (
    CompareResult,
    ItemResult,
    Model,
    PolicyInfo,
    PrefetchResult,
    Priority,
    RankResult,
    Results,
    ScoreResult,
    Threshold,
    Verdict,
)

T = TypeVar("T")


class _Transport(Protocol):
    async def send(self, call: Call[T], deadline: Deadline) -> Any: ...
    async def close(self) -> None: ...


class AsyncClient(AsyncJobMethods, AsyncAliasMethods):
    """:class:`critiq.Client` for asyncio: the same arguments and errors, the same methods as coroutines.

    Belongs to the event loop of its first call. Pictures are read and packed in threads, off the event loop. A call
    that is cancelled is cancelled on the server too.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        timeout: float | None = 30.0,
        retries: int = 3,
        headers: Mapping[str, str] | None = None,
        ca_file: str | Path | None = None,
        api_key: str | None = None,
        cert: tuple[str | Path, str | Path] | None = None,
    ) -> None:
        super().__init__(url, timeout, retries, headers, ca_file, api_key, cert)
        self._transport = _transport(self._endpoint)

    async def score(
        self,
        image: ImageInput,
        prompt: str = "",
        *,
        model: str = "",
        version: str = "",
        dimensions: Sequence[str] = (),
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> ScoreResult:
        """See :meth:`critiq.Client.score`."""
        options = Options(model, version, dimensions, priority)
        request = await asyncio.to_thread(_requests.score_request, image, prompt, options)
        result = wire.result_from_proto(await self._run(_requests.score(request), self._limit(timeout)))
        return await _notebook.in_thread(_notebook.attach, result, image)

    async def score_batch(
        self,
        items: Iterable[Any],
        *,
        model: str = "",
        version: str = "",
        dimensions: Sequence[str] = (),
        priority: Priority = "interactive",
        timeout: float | None = None,
        batch_size: int = 64,
    ) -> Results:
        """See :meth:`critiq.Client.score_batch`."""
        options = Options(model, version, dimensions, priority)
        prepared = batches(_requests.numbered_items(items, options), batch_size)
        results = Results()
        while (batch := await asyncio.to_thread(next, prepared, None)) is not None:
            results += await self._run_batch(batch, self._limit(timeout))
        return await _notebook.in_thread(_notebook.attach_each, results, items)

    def score_stream(
        self,
        items: Iterable[Any] | AsyncIterable[Any],
        *,
        window: int = 64,
        model: str = "",
        version: str = "",
        dimensions: Sequence[str] = (),
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> AsyncIterator[ItemResult]:
        """See :meth:`critiq.Client.score_stream`.

        ``items`` may be an asynchronous iterable. It is read while results come in, so it may wait for them.
        """
        options = Options(model, version, dimensions, priority)
        limit = self._limit(timeout)
        open_stream: Callable[[Deliver], AsyncConnection] | None = getattr(self._transport, "open_stream", None)
        if open_stream is not None:
            return async_stream(items, options, open_stream, window=window, timeout=limit, policy=self._policy)

        def connect(deliver: Deliver) -> AsyncConnection:
            return AsyncUnaryConnection(lambda call: self._run(call, limit), deliver)

        return async_stream(items, options, connect, window=window, timeout=limit, policy=NO_RETRIES)

    async def rank(
        self,
        images: Iterable[ImageInput],
        prompt: str = "",
        *,
        top_k: int = 0,
        at_least: Sequence[Threshold | str] = (),
        diversity: float = 0.0,
        embedding: str = "",
        model: str = "",
        version: str = "",
        dimension: str = "",
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> RankResult:
        """See :meth:`critiq.Client.rank`."""
        options = Options(model, version, (dimension,) if dimension else (), priority)
        arguments = (images, prompt, options, top_k, at_least, diversity, embedding)
        call = await asyncio.to_thread(_requests.rank, *arguments)
        return await _notebook.in_thread(_notebook.attach_all, await self._run(call, self._limit(timeout)), images)

    async def compare(
        self,
        first: ImageInput,
        second: ImageInput,
        prompt: str = "",
        *,
        model: str = "",
        version: str = "",
        dimensions: Sequence[str] = (),
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> CompareResult:
        """See :meth:`critiq.Client.compare`."""
        options = Options(model, version, dimensions, priority)
        call = await asyncio.to_thread(_requests.compare, first, second, prompt, options)
        return await _notebook.in_thread(_notebook.attach, await self._run(call, self._limit(timeout)), first, second)

    async def prefetch(
        self,
        items: Iterable[Any],
        *,
        model: str = "",
        version: str = "",
        timeout: float | None = None,
        batch_size: int = 64,
    ) -> PrefetchResult:
        """See :meth:`critiq.Client.prefetch`."""
        taken = Prefetched(_requests.numbered_items(items, Options(model, version)), batch_size)
        for call in taken.calls():
            taken.accept(await self._run(call, self._limit(timeout)))
        return taken.result()

    async def moderate(
        self,
        image: ImageInput,
        prompt: str = "",
        *,
        policy: str = "",
        policy_version: str = "",
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> Verdict:
        """See :meth:`critiq.Client.moderate`."""
        call = await asyncio.to_thread(_requests.moderate, image, prompt, policy, policy_version, priority)
        return await self._run(call, self._limit(timeout))

    async def policies(self, *, timeout: float | None = None) -> list[PolicyInfo]:
        """See :meth:`critiq.Client.policies`."""
        return await self._run(_requests.policies(), self._limit(timeout))

    async def models(self, *, timeout: float | None = None) -> list[Model]:
        """See :meth:`critiq.Client.models`."""
        return await self._run(_requests.list_models(), self._limit(timeout))

    async def model(self, name: str = "", version: str = "", *, timeout: float | None = None) -> Model:
        """See :meth:`critiq.Client.model`."""
        if not name:
            default = _requests.default_model(await self.models(timeout=timeout))
            name, version = default.name, version or default.version
        return await self._run(_requests.get_model(name, version), self._limit(timeout))

    async def load_model(self, name: str, version: str = "", *, timeout: float | None = LOAD_TIMEOUT) -> Model:
        """See :meth:`critiq.Client.load_model`."""
        return await self._run(_requests.load_model(name, version), self._limit(timeout))

    async def unload_model(self, name: str, version: str = "", *, timeout: float | None = LOAD_TIMEOUT) -> None:
        """See :meth:`critiq.Client.unload_model`."""
        await self._run(_requests.unload_model(name, version), self._limit(timeout))

    async def wait_ready(self, timeout: float = 30.0) -> None:
        """See :meth:`critiq.Client.wait_ready`."""
        deadline = Deadline(timeout, self.url)
        call = _requests.list_models()
        reason = "no answer"
        while True:
            try:
                if is_ready(call.read(await self._transport.send(call, deadline))):
                    return
                reason = "its default model is not loaded"
            except DeadlineExceeded:
                raise self._not_ready(timeout, reason) from None
            except Unavailable as error:
                reason = str(error)
            await asyncio.sleep(POLL_PAUSE)

    async def close(self) -> None:
        """Ends the connection; calls under way fail."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _run(self, call: Call[T], timeout: float | None) -> T:
        call.check_size()
        deadline = Deadline(timeout, self.url)
        policy = self._policy if call.safe else NO_RETRIES
        return call.read(await policy.asynchronous(timeout)(self._transport.send, call, deadline))

    async def _run_batch(self, batch: Batch, timeout: float | None) -> list[ItemResult]:
        deadline = Deadline(timeout, self.url)

        async def attempt() -> None:
            batch.accept(await self._transport.send(batch.call(), deadline))

        try:
            if batch.open:
                await self._policy.asynchronous(timeout)(attempt)
        except CritiqError:
            # Refused items have that as their outcome; only a call without any answer has failed as a whole.
            if not batch.answered:
                raise
        return batch.results()


def _transport(endpoint: Endpoint) -> _Transport:
    # Imported here because a caller needs only one of grpc and httpx.
    if endpoint.grpc:
        from critiq._transport_grpc import AsyncGrpcTransport

        return AsyncGrpcTransport(endpoint)
    from critiq._transport_http import AsyncHttpTransport

    return AsyncHttpTransport(endpoint)
