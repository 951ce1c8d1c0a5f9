"""What a call is counted as: its place at the gate, its metrics, its line in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from functools import cache
from time import perf_counter

import structlog

from critiq.errors import CritiqError
from critiq_server.engine.admission import Admission
from critiq_server.queries import Query
from critiq_server.registry import Registry
from critiq_server.security.limits import caller
from critiq_server.telemetry import traces
from critiq_server.telemetry.faults import internal
from critiq_server.telemetry.metrics import Metrics

logger = structlog.get_logger("critiq")

_call_bytes: ContextVar[int] = ContextVar("call_bytes", default=0)
"""Bytes of the pictures of the current call, for its line in the log."""


class Accounting:
    """Counts calls and their pictures. Inside each of its ``with`` blocks only ``critiq.errors`` get out.

    Args:
        registry: knows which names of models are safe as labels.
        access: whether each call gets a line in the log.
    """

    def __init__(self, registry: Registry, admission: Admission, metrics: Metrics, *, access: bool) -> None:
        self._registry = registry
        self._admission = admission
        self._metrics = metrics
        self._access = access
        # prometheus_client looks labels up under a lock; their values are few.
        self._requests = cache(metrics.requests.labels)
        self._latency = cache(metrics.latency.labels)
        self._items = cache(metrics.items.labels)

    @contextmanager
    def call(self, operation: str, model: str, pictures: int = 0) -> Iterator[None]:
        """Counts and times a call.

        ``pictures``: those to count with the call, where it does not count each by itself.
        """
        started = perf_counter()

        def count(code: str) -> None:
            seconds, label = perf_counter() - started, self._label(model)
            self._requests(operation, label, code).inc()
            self._latency(operation).observe(seconds)
            traces.note({"critiq.operation": operation, "critiq.model": label, "critiq.code": code})
            if self._access:
                logger.info(
                    "request",
                    operation=operation,
                    model=label,
                    code=code,
                    ms=round(1000 * seconds, 3),
                    bytes=_call_bytes.get(),
                    key=caller.get() or "",
                )
            if pictures:
                self._items(label, code).inc(pictures)

        with _ending(operation, count):
            yield

    def item(self, name: str, model: str) -> AbstractContextManager[None]:
        """Counts one picture of several; ``name`` tells it from the others in the log."""

        def count(code: str) -> None:
            self._items(self._label(model), code).inc()
            traces.note({"critiq.code": code})

        return _ending(name, count)

    def prefetched(self, model: str) -> AbstractContextManager[None]:
        """Counts one picture whose features were computed ahead."""
        return _ending("prefetch", lambda code: self._metrics.prefetched.labels(self._label(model), code).inc())

    @contextmanager
    def admitted(self, queries: Sequence[Query]) -> Iterator[None]:
        """Holds a place for a call. Raises as ``Admission.admit``."""
        size = sum(len(query.image.data) for query in queries)
        self.note_bytes(size)
        try:
            holding = self._admission.admit(max(1, len(queries)), size)
            holding.__enter__()
        except CritiqError as error:
            self._metrics.rejected.labels(error.code).inc()
            raise
        try:
            yield
        finally:
            holding.__exit__(None, None, None)

    def note_bytes(self, size: int) -> None:
        """Notes how many bytes the pictures of the current call have."""
        self._metrics.request_bytes.observe(size)
        if self._access:
            _call_bytes.set(size)

    def _label(self, model: str) -> str:
        """A model name that is safe as a label: callers can send anything."""
        name = model or self._registry.default_name
        return name if self._registry.knows(name) else "unknown"


@contextmanager
def _ending(what: str, tell: Callable[[str], None]) -> Iterator[None]:
    """Tells the code with which the block ends; what is not a ``CritiqError`` becomes one, the detail in the log."""
    code = "OK"
    try:
        yield
    except CritiqError as error:
        code = error.code
        raise
    except asyncio.CancelledError:
        code = "CANCELLED"
        raise
    except Exception as error:
        fault = internal(what, error)
        code = fault.code
        raise fault from error
    finally:
        tell(code)
