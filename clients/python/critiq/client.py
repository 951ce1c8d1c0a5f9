"""The blocking client. ``async_client.py`` has the same methods for asyncio; all else they share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from critiq import _notebook, _requests, wire
from critiq._aliases import AliasMethods
from critiq._base import LOAD_TIMEOUT, NO_RETRIES, POLL_PAUSE, is_ready
from critiq._batches import Batch, Prefetched, batches
from critiq._endpoint import DEFAULT_URL, Endpoint
from critiq._jobs import JobMethods
from critiq._requests import Call, Options
from critiq._retry import Deadline
from critiq._stream import Connection, UnaryConnection, stream
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
    def send(self, call: Call[T], deadline: Deadline) -> Any: ...
    def close(self) -> None: ...


class Client(JobMethods, AliasMethods):
    """A connection to a critiq server, for any number of threads.

    Connects at the first call. Use it as a context manager, or :meth:`close` it. Not to be shared over a ``fork``: make
    one in each process.

    Args:
        url: ``host[:port]`` or ``grpc://`` for gRPC, ``grpcs://`` for gRPC over TLS, ``http(s)://`` for REST. For gRPC
            also several IP addresses, ``10.0.0.1:8001,10.0.0.2:8001``: calls take turns between them.
        timeout: seconds a call may take with all its retries, unless the call says otherwise; ``None``: no limit.
        retries: tries after the first one, where the server refused or was not reached.
        headers: sent with each call (gRPC metadata, HTTP headers).
        ca_file: PEM certificates to trust instead of the system's; default: the environment's ``CRITIQ_CA_FILE``.
        api_key: for servers that ask for keys, or a token; default: the environment's ``CRITIQ_API_KEY``; empty: none.
            It is sent in the header ``Authorization``, or ``x-api-key`` where ``headers`` have that one already.
        cert: for servers that ask for a client's certificate: PEM files of it and of its key; default: the
            environment's ``CRITIQ_CLIENT_CERT`` and ``CRITIQ_CLIENT_KEY``.

    Every method raises the classes of :mod:`critiq.errors`, the server's as well as :class:`~critiq.errors.Unavailable`
    (not reached), :class:`~critiq.errors.DeadlineExceeded` and :class:`~critiq.errors.InvalidArgument` (for what cannot
    be sent).
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

    def score(
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
        """Scores one picture.

        Args:
            image: see :data:`critiq.images.ImageInput`.
            prompt: the text that the picture was made from.
            model, version: default: the server's default model and its newest loaded version.
            dimensions: default: all that can be judged from what is given.
            priority: ``bulk`` for work that may wait.
            timeout: seconds; default: the client's; ``math.inf``: no limit.
        """
        options = Options(model, version, dimensions, priority)
        call = _requests.score(_requests.score_request(image, prompt, options))
        return _notebook.attach(wire.result_from_proto(self._run(call, self._limit(timeout))), image)

    def score_batch(
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
        """Scores many pictures; each has its own outcome, so a bad one does not fail the others.

        Args:
            items: pictures, ``(picture, prompt)`` pairs or :class:`critiq.Item`; or an array or tensor with four axes.
            batch_size: items in one call. More are cut into calls of that size, of 32 MiB at the most.
            timeout: seconds for each of these calls.

        Returns:
            One result an item, in their order.
        """
        options = Options(model, version, dimensions, priority)
        results = Results()
        for batch in batches(_requests.numbered_items(items, options), batch_size):
            results += self._run_batch(batch, self._limit(timeout))
        return _notebook.attach_each(results, items)

    def score_stream(
        self,
        items: Iterable[Any],
        *,
        window: int = 64,
        model: str = "",
        version: str = "",
        dimensions: Sequence[str] = (),
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> Iterator[ItemResult]:
        """Scores pictures as they come and yields each result once it is ready, so results may overtake each other.

        If the connection breaks, what is unanswered is sent again over a new one. Over REST the stream is made of
        single calls, ``window`` at once.

        Args:
            items: as in :meth:`score_batch`; read in the calling thread, at most ``window`` ahead of the results.
            window: items under way at once.
            timeout: seconds to wait for the next result while items are under way (gRPC), or for each item (REST).
        """
        options = Options(model, version, dimensions, priority)
        limit = self._limit(timeout)
        open_stream: Callable[[], Connection] | None = getattr(self._transport, "open_stream", None)
        if open_stream is not None:
            return stream(items, options, open_stream, window=window, timeout=limit, policy=self._policy)

        def connect() -> Connection:
            return UnaryConnection(lambda call: self._run(call, limit), window)

        return stream(items, options, connect, window=window, timeout=limit, policy=NO_RETRIES)

    def rank(
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
        """Orders pictures that were made from one prompt, best first.

        Args:
            images: pictures, or an array or tensor with four axes.
            top_k: only the best so many; 0: all. Taken after the thresholds.
            at_least: what a picture needs to be ranked: :class:`critiq.Threshold` or text such as
                ``"visual_quality:percentile=20"``.
            diversity: 0..1; how much being unlike the pictures placed before counts against the score (maximal marginal
                relevance, see the contract).
            embedding: the stage whose output is compared for that; default: the model's image encoder.
            dimension: what to order by; default: alignment with a prompt, else visual quality (for the built-in model).
        """
        options = Options(model, version, (dimension,) if dimension else (), priority)
        call = _requests.rank(images, prompt, options, top_k, at_least, diversity, embedding)
        return _notebook.attach_all(self._run(call, self._limit(timeout)), images)

    def compare(
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
        """Says in each dimension which of two pictures is better."""
        options = Options(model, version, dimensions, priority)
        result = self._run(_requests.compare(first, second, prompt, options), self._limit(timeout))
        return _notebook.attach(result, first, second)

    def prefetch(
        self,
        items: Iterable[Any],
        *,
        model: str = "",
        version: str = "",
        timeout: float | None = None,
        batch_size: int = 64,
    ) -> PrefetchResult:
        """Has the server compute, when nothing more urgent waits, what scoring these pictures will need.

        For models that ask large multimodal models; returns without waiting for them.

        Args:
            items: as in :meth:`score_batch`.
            timeout: seconds for each call of at most ``batch_size`` items.

        Returns:
            How many were taken on, and the others with their errors.
        """
        taken = Prefetched(_requests.numbered_items(items, Options(model, version)), batch_size)
        for call in taken.calls():
            taken.accept(self._run(call, self._limit(timeout)))
        return taken.result()

    def moderate(
        self,
        image: ImageInput,
        prompt: str = "",
        *,
        policy: str = "",
        policy_version: str = "",
        priority: Priority = "interactive",
        timeout: float | None = None,
    ) -> Verdict:
        """What a moderation policy of the server decides about one picture. Quality is not safety.

        Args:
            policy, policy_version: default: the server's default policy and its newest version.
        """
        call = _requests.moderate(image, prompt, policy, policy_version, priority)
        return self._run(call, self._limit(timeout))

    def policies(self, *, timeout: float | None = None) -> list[PolicyInfo]:
        """The server's moderation policies, by name, the newest version last."""
        return self._run(_requests.policies(), self._limit(timeout))

    def models(self, *, timeout: float | None = None) -> list[Model]:
        """Every model version that the server knows, loaded or not."""
        return self._run(_requests.list_models(), self._limit(timeout))

    def model(self, name: str = "", version: str = "", *, timeout: float | None = None) -> Model:
        """One of them; default: the default model's serving version."""
        if not name:
            default = _requests.default_model(self.models(timeout=timeout))
            name, version = default.name, version or default.version
        return self._run(_requests.get_model(name, version), self._limit(timeout))

    def load_model(self, name: str, version: str = "", *, timeout: float | None = LOAD_TIMEOUT) -> Model:
        """Loads a version (default: the newest) from the server's model directory. Never retried."""
        return self._run(_requests.load_model(name, version), self._limit(timeout))

    def unload_model(self, name: str, version: str = "", *, timeout: float | None = LOAD_TIMEOUT) -> None:
        """Stops serving a version (default: every one). Never retried."""
        self._run(_requests.unload_model(name, version), self._limit(timeout))

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Returns as soon as the server is reached and its default model is loaded.

        Raises:
            DeadlineExceeded: that did not happen within ``timeout`` seconds; the message has the last reason.
        """
        deadline = Deadline(timeout, self.url)
        call = _requests.list_models()
        reason = "no answer"
        while True:
            try:
                if is_ready(call.read(self._transport.send(call, deadline))):
                    return
                reason = "its default model is not loaded"
            except DeadlineExceeded:
                raise self._not_ready(timeout, reason) from None
            except Unavailable as error:
                reason = str(error)
            time.sleep(POLL_PAUSE)

    def close(self) -> None:
        """Ends the connection; calls under way fail."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, call: Call[T], timeout: float | None) -> T:
        call.check_size()
        deadline = Deadline(timeout, self.url)
        policy = self._policy if call.safe else NO_RETRIES
        return call.read(policy.blocking(timeout)(self._transport.send, call, deadline))

    def _run_batch(self, batch: Batch, timeout: float | None) -> list[ItemResult]:
        deadline = Deadline(timeout, self.url)

        def attempt() -> None:
            batch.accept(self._transport.send(batch.call(), deadline))

        try:
            if batch.open:
                self._policy.blocking(timeout)(attempt)
        except CritiqError:
            # Refused items have that as their outcome; only a call without any answer has failed as a whole.
            if not batch.answered:
                raise
        return batch.results()


def _transport(endpoint: Endpoint) -> _Transport:
    # Imported here because a caller needs only one of grpc and httpx.
    if endpoint.grpc:
        from critiq._transport_grpc import GrpcTransport

        return GrpcTransport(endpoint)
    from critiq._transport_http import HttpTransport

    return HttpTransport(endpoint)
