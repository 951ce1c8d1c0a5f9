"""Traces, as the rest of the server sees them: spans of a call's steps. Costs next to nothing while they are off.

One tracer a process, as OpenTelemetry has it. The tracer itself is in ``tracer.py``, which needs the packages of
``critiq[telemetry]``; nothing here does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol

from critiq_server.telemetry.settings import TraceSettings

Attributes = Mapping[str, str | int | float | bool]

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""What the current call goes by in the log; empty where nobody gave it one."""

_OFF: AbstractContextManager[None] = nullcontext()
_NONE: Attributes = {}


class TracesUnavailable(Exception):
    """Traces are asked for and cannot be had; the message says what to do."""


class Waited(Protocol):
    """An item of a batch."""

    @property
    def origin(self) -> object | None:
        """What :func:`origin` gave when it was queued."""
        ...

    @property
    def queued_at(self) -> float:
        """By ``time.perf_counter``."""
        ...


class Tracer(Protocol):
    """See the functions below, and ``tracer.py``."""

    settings: TraceSettings

    def span(self, name: str, attributes: Attributes, *, leaves: bool) -> AbstractContextManager[None]: ...
    def linked(self, name: str, link: str, attributes: Attributes) -> AbstractContextManager[None]: ...
    def batch(self, name: str, attributes: Attributes, items: Sequence[Waited]) -> AbstractContextManager[None]: ...
    def call(self, name: str, carrier: Mapping[str, str], attributes: Attributes) -> Any: ...
    def answered(self, call: Any, attributes: Attributes, failure: str, name: str = "") -> None: ...
    def event(self, name: str, attributes: Attributes) -> None: ...
    def note(self, attributes: Attributes) -> None: ...
    def origin(self) -> object | None: ...
    def ids(self) -> tuple[str, str] | None: ...
    def headers(self) -> dict[str, str]: ...
    async def close(self) -> None: ...


tracer: Tracer | None = None
"""Set by :func:`start` and :func:`stop` only."""


def start(settings: TraceSettings) -> Tracer | None:
    """Traces from now on, if the settings name where to; give what it returns to :func:`stop`.

    Raises:
        TracesUnavailable: a package is missing, or the environment has a variable that makes no sense.
    """
    global tracer  # noqa: PLW0603 - one a process
    if not settings.endpoint:
        return None
    try:
        from critiq_server.telemetry.tracer import OtlpTracer
    except ImportError as error:
        raise TracesUnavailable(
            f"telemetry.traces.endpoint is set, and {error.name} is not installed; pip install 'critiq[telemetry]'"
        ) from error
    try:
        tracer = OtlpTracer(settings)
    except Exception as error:  # whatever the SDK says to a variable that it cannot read
        raise TracesUnavailable(
            f"traces cannot be sent to {settings.endpoint} ({error}); look at telemetry.traces and the variables OTEL_*"
        ) from error
    return tracer


async def stop(started: Tracer | None) -> None:
    """Ends what :func:`start` began, once what is left has been sent or five seconds have passed."""
    global tracer  # noqa: PLW0603
    if tracer is started:
        tracer = None
    if started is not None:
        await started.close()


def span(name: str, attributes: Attributes = _NONE, *, leaves: bool = False) -> AbstractContextManager[None]:
    """A step of the current call, while the block runs; ``leaves``: it asks another server."""
    return _OFF if tracer is None else tracer.span(name, attributes, leaves=leaves)


def linked(name: str, link: str, attributes: Attributes = _NONE) -> AbstractContextManager[None]:
    """Work that nobody waits for, with a trace of its own; ``link`` is the ``traceparent`` of who asked for it."""
    return _OFF if tracer is None else tracer.linked(name, link, attributes)


def batch(name: str, attributes: Attributes, items: Sequence[Waited]) -> AbstractContextManager[None]:
    """A batch that is computed while the block runs: a span of its own, and in each item's trace how long it waited
    and how long this took. May be used in any thread."""
    return _OFF if tracer is None else tracer.batch(name, attributes, items)


def event(name: str, attributes: Attributes = _NONE) -> None:
    """Something that happened in the current step."""
    if tracer is not None:
        tracer.event(name, attributes)


def note(attributes: Attributes) -> None:
    """More about the current step."""
    if tracer is not None:
        tracer.note(attributes)


def origin() -> object | None:
    """The current step, for work that is done for it elsewhere; ``None`` where it is not traced."""
    return None if tracer is None else tracer.origin()


def headers() -> dict[str, str]:
    """What tells a server of ours which trace a request belongs to."""
    return {} if tracer is None else tracer.headers()


def headers_for_strangers() -> dict[str, str]:
    """The same for hosts that callers name: nothing, unless the settings say otherwise."""
    return {} if tracer is None or not tracer.settings.tell_hosts else tracer.headers()
