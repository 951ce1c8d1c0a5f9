"""An OpenTelemetry collector on loopback: takes spans over OTLP/gRPC and keeps them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services


@dataclass(frozen=True)
class Seen:
    """One span."""

    name: str
    trace: str
    id: str
    parent: str
    kind: int
    start: int
    end: int
    attributes: dict[str, Any]
    links: tuple[tuple[str, str], ...]
    events: tuple[tuple[str, dict[str, Any]], ...]
    failed: bool


@dataclass
class Collector(services.TraceServiceServicer):
    """What came. ``delay`` seconds pass before each answer; while ``broken``, each is an error."""

    port: int = 0
    delay: float = 0.0
    broken: bool = False
    resource: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    _spans: list[Seen] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - its name in the protocol
        time.sleep(self.delay)
        if self.broken:
            context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
        with self._lock:
            self.metadata = dict(context.invocation_metadata())
            for group in request.resource_spans:
                self.resource = _plain(group.resource.attributes)
                for scope in group.scope_spans:
                    self._spans += [_seen(span) for span in scope.spans]
        return messages.ExportTraceServiceResponse()

    @property
    def spans(self) -> list[Seen]:
        """All so far, in the order in which they began."""
        with self._lock:
            return sorted(self._spans, key=lambda span: span.start)

    def named(self, name: str) -> list[Seen]:
        return [span for span in self.spans if span.name == name]

    def tree(self, trace: str) -> str:
        """The spans of one trace as an indented list, with their times in milliseconds."""
        spans = [span for span in self.spans if span.trace == trace]
        known = {span.id for span in spans}
        lines: list[str] = []

        def add(span: Seen, depth: int) -> None:
            milliseconds = (span.end - span.start) / 1e6
            lines.append(f"{'  ' * depth}{span.name}  {milliseconds:.2f} ms")
            lines.extend(f"{'  ' * (depth + 1)}* {name} {values}" for name, values in span.events)
            for child in spans:
                if child.parent == span.id:
                    add(child, depth + 1)

        for span in spans:
            if span.parent not in known:
                add(span, 0)
        return "\n".join(lines)


@contextmanager
def collecting(credentials: grpc.ServerCredentials | None = None) -> Iterator[Collector]:
    """A collector while the block runs; with ``credentials`` over TLS."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    services.add_TraceServiceServicer_to_server(collector, server)
    if credentials is None:
        collector.port = server.add_insecure_port("127.0.0.1:0")
    else:
        collector.port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield collector
    finally:
        server.stop(None)


def _seen(span: Any) -> Seen:
    return Seen(
        name=span.name,
        trace=span.trace_id.hex(),
        id=span.span_id.hex(),
        parent=span.parent_span_id.hex(),
        kind=span.kind,
        start=span.start_time_unix_nano,
        end=span.end_time_unix_nano,
        attributes=_plain(span.attributes),
        links=tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links),
        events=tuple((event.name, _plain(event.attributes)) for event in span.events),
        failed=span.status.code == 2,
    )


def _plain(attributes: Any) -> dict[str, Any]:
    return {entry.key: getattr(entry.value, entry.value.WhichOneof("value")) for entry in attributes}
