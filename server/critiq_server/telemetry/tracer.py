"""The tracer: OpenTelemetry's SDK, sending over OTLP/gRPC. Needs ``critiq[telemetry]``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import structlog
from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from critiq.errors import CritiqError
from critiq_server.telemetry.counters import TRACE_SPANS
from critiq_server.telemetry.metrics import version
from critiq_server.telemetry.settings import TraceSettings
from critiq_server.telemetry.traces import _OFF, Attributes, Waited

logger = structlog.get_logger("critiq")

_FLUSH_SECONDS = 5.0
_NOISY = ("opentelemetry.exporter.otlp.proto.grpc.exporter", "opentelemetry.sdk._shared_internal")


class OtlpTracer:
    """See :mod:`critiq_server.telemetry.traces`, whose functions call these methods."""

    def __init__(self, settings: TraceSettings) -> None:
        self.settings = settings
        resource = Resource.create({SERVICE_NAME: "critiq", "service.version": version()})
        # The environment has the last word on names.
        resource = resource.merge(OTELResourceDetector().detect())
        sampler: Sampler | None = None  # the environment's
        if settings.sample_ratio is not None:
            sampler = ParentBased(TraceIdRatioBased(settings.sample_ratio))
        # One line when the collector is lost and one when it is found again, instead of one a try and one a span.
        for name in _NOISY:
            logging.getLogger(name).setLevel("CRITICAL")
        exporter = OTLPSpanExporter(settings.endpoint, insecure=settings.endpoint.startswith("http://"))
        self._sending = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]
        self._sending.add_span_processor(_Counting(_Watched(exporter, settings.endpoint)))
        # We close them ourselves: at the interpreter's exit they would wait for a collector that is not there.
        provider = TracerProvider(sampler, resource, shutdown_on_exit=False, active_span_processor=self._sending)
        self._tracer = provider.get_tracer("critiq", version())
        # What is recorded because something else is: that was decided when the call began.
        always = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, active_span_processor=self._sending)
        self._always = always.get_tracer("critiq", version())

    @contextmanager
    def _current(self, span: Span) -> Iterator[None]:
        """``span`` around the block. Of an exception only its class is kept: messages may quote what callers sent."""
        token = context.attach(trace.set_span_in_context(span))
        try:
            yield
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            context.detach(token)
            span.end()

    def span(self, name: str, attributes: Attributes, *, leaves: bool) -> AbstractContextManager[None]:
        if not trace.get_current_span().is_recording():
            return _OFF
        kind = SpanKind.CLIENT if leaves else SpanKind.INTERNAL
        return self._current(self._tracer.start_span(name, kind=kind, attributes=dict(attributes)))

    def linked(self, name: str, link: str, attributes: Attributes) -> AbstractContextManager[None]:
        asked = trace.get_current_span(propagate.extract({"traceparent": link}, context.Context())).get_span_context()
        links = [Link(asked)] if asked.is_valid else []
        # Sampled as the call that asked for it, so that what is linked is there.
        tracer = self._always if asked.is_valid and asked.trace_flags.sampled else self._tracer
        span = tracer.start_span(name, context.Context(), SpanKind.CONSUMER, dict(attributes), links)
        return self._current(span)

    @contextmanager
    def batch(self, name: str, attributes: Attributes, items: Sequence[Waited]) -> Iterator[None]:
        traced = [(item.origin, item.queued_at) for item in items if isinstance(item.origin, Span)]
        if not traced:
            yield
            return
        clock = time.time_ns() - int(time.perf_counter() * 1e9)  # what to add to the one for the other

        def now() -> int:
            return clock + int(time.perf_counter() * 1e9)

        described = {**attributes, "critiq.batch.size": len(items)}
        started = now()
        span = self._always.start_span(f"{name} batch", context.Context(), attributes=described, start_time=started)
        link = [Link(span.get_span_context())]
        token = context.attach(trace.set_span_in_context(span, context.Context()))
        try:
            yield
        except BaseException as error:
            _failed(span, error)
            raise
        finally:
            context.detach(token)
            ended = now()
            for origin, queued_at in traced:
                parent = trace.set_span_in_context(origin, context.Context())
                queued = clock + int(queued_at * 1e9)
                wait = self._tracer.start_span(f"{name} queue", parent, attributes=dict(attributes), start_time=queued)
                wait.end(started)
                own = self._tracer.start_span(
                    f"{name} compute", parent, attributes=described, links=link, start_time=started
                )
                own.end(ended)
                span.add_link(own.get_span_context())
            span.end(ended)

    def call(self, name: str, carrier: Mapping[str, str], attributes: Attributes) -> Span:
        """Begins the span of a call from outside and makes it the current task's; ends with :meth:`answered`."""
        # Not in the current context: of requests that come together, one is taken up in the context of the one before.
        found = propagate.extract(carrier, context.Context())
        links = []
        if not self.settings.follow_callers:
            asked = trace.get_current_span(found).get_span_context()
            links = [Link(asked)] if asked.is_valid else []
            found = context.Context()
        span = self._tracer.start_span(name, found, SpanKind.SERVER, dict(attributes), links)
        context.attach(trace.set_span_in_context(span, found))  # for good: the task is the call's own
        return span

    def answered(self, call: Span, attributes: Attributes, failure: str, name: str = "") -> None:
        """Ends the span of a call; ``failure``: what failed in this server, empty if nothing did."""
        call.set_attributes(dict(attributes))
        if name:
            call.update_name(name)
        if failure:
            call.set_attribute("error.type", failure)
            call.set_status(Status(StatusCode.ERROR))
        call.end()

    def event(self, name: str, attributes: Attributes) -> None:
        trace.get_current_span().add_event(name, dict(attributes))

    def note(self, attributes: Attributes) -> None:
        trace.get_current_span().set_attributes(dict(attributes))

    def origin(self) -> Span | None:
        span = trace.get_current_span()
        return span if span.is_recording() else None

    def ids(self) -> tuple[str, str] | None:
        """Ids of the current trace and span, in hex."""
        found = trace.get_current_span().get_span_context()
        return (f"{found.trace_id:032x}", f"{found.span_id:016x}") if found.is_valid else None

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return carrier

    async def close(self) -> None:
        """Sends what is left; a collector that does not take it is waited for five seconds."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def shut_down() -> None:
            self._sending.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                loop.call_soon_threadsafe(done.set)

        # Not one of the loop's own threads: those are waited for when it ends.
        threading.Thread(target=shut_down, name="critiq-traces", daemon=True).start()
        try:
            await asyncio.wait_for(done.wait(), _FLUSH_SECONDS)
        except TimeoutError:
            logger.warning("spans were not delivered before the server stopped", collector=self.settings.endpoint)


class _Counting(BatchSpanProcessor):
    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            TRACE_SPANS.labels("made").inc()
        super().on_end(span)


class _Watched(SpanExporter):
    """Counts what was delivered; says once when the collector is lost, and once when it is found again."""

    def __init__(self, exporter: SpanExporter, endpoint: str) -> None:
        self._exporter, self._endpoint = exporter, endpoint
        self._lost = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception:
            result = SpanExportResult.FAILURE
        failed = result is not SpanExportResult.SUCCESS
        TRACE_SPANS.labels("failed" if failed else "exported").inc(len(spans))
        if failed and not self._lost:
            logger.warning("the collector takes no spans: they are lost until it does", collector=self._endpoint)
        elif self._lost and not failed:
            logger.info("the collector takes spans again", collector=self._endpoint)
        self._lost = failed
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return self._exporter.force_flush(timeout_millis)


def _failed(span: Span, error: BaseException) -> None:
    """Only the error's class or code: messages may quote what callers sent."""
    if isinstance(error, asyncio.CancelledError):
        span.set_attribute("critiq.code", "CANCELLED")
        return
    span.set_attribute("error.type", error.code if isinstance(error, CritiqError) else type(error).__qualname__)
    span.set_status(Status(StatusCode.ERROR))
