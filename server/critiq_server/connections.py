"""HTTP connections of clients that may be slow, silent, or too many.

What a client owes has a time limit: its headers, its body, and the taking of its answer. Nothing is timed for each
request: twice a second all connections of a port are looked through.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from critiq_server.security.settings import ConnectionLimits

logger = structlog.get_logger("critiq")

_QUIET_SECONDS = 10.0


class Doors:
    """The connections of one port, over TLS from before the handshake.

    Args:
        on_drop: is told why a connection was refused or cut: full, address, handshakes, headers, body, answer.
    """

    def __init__(self, limits: ConnectionLimits, on_drop: Callable[[str], None]) -> None:
        self.limits = limits
        self._on_drop = on_drop
        self._open: dict[Connection, str] = {}
        self._addresses: Counter[str] = Counter()
        self._dropped, self._logged_at = 0, float("-inf")

    def __len__(self) -> int:
        return len(self._open)

    def enter(self, connection: Connection, address: str) -> tuple[int, str] | None:
        """Notes a connection; if there is no room for it, returns the status to refuse it with, and the reason."""
        per_address = self.limits.connections_per_address
        refusal = None
        if len(self._open) >= self.limits.connections:
            self.drop("full")
            refusal = 503, f"This port has {self.limits.connections} connections, which is its limit; come back later."
        elif per_address and self._addresses[address] >= per_address:
            self.drop("address")
            refusal = 429, f"Your address has {per_address} connections, which is the limit; close one first."
        else:
            self._open[connection] = address
            self._addresses[address] += 1
        return refusal

    def leave(self, connection: Connection) -> None:
        address = self._open.pop(connection, None)
        if address is not None:
            self._addresses[address] -= 1
            if not self._addresses[address]:
                del self._addresses[address]

    def look(self) -> None:
        """Ends what has taken too long."""
        now = time.monotonic()
        for connection in list(self._open):
            connection.look(now)

    def drop(self, reason: str) -> None:
        """Counts, and logs one in so many seconds: strangers must not fill the disk."""
        self._on_drop(reason)
        self._dropped += 1
        now = time.monotonic()
        if now - self._logged_at >= _QUIET_SECONDS:
            logger.warning("connection dropped", why=reason, dropped_since_last_line=self._dropped, open=len(self))
            self._dropped, self._logged_at = 0, now


class Connection(HttpToolsProtocol):
    """uvicorn's, which would wait for headers, bodies and readers for ever, and collect any number of headers and
    trailers: no limit on bodies counts them."""

    _MOST = 2**16
    _outside = 0
    """Bytes since a request began, or since the last of its body."""
    _owes: str | None = "headers"
    """What the client has not sent yet; ``None`` while it waits for us."""
    _received = 0
    _left = _taken = 0
    """Bytes that the client had not taken at the last look, and those that it took since its time began."""
    _refused = False

    def __init__(self, *arguments: Any, doors: Doors) -> None:
        super().__init__(*arguments)
        self._doors = doors
        self._since = self._left_since = time.monotonic()
        self._certificate: tuple[str, ...] = ()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = time.monotonic()
        handshake = transport.get_extra_info("ssl_object")
        if handshake is not None:  # it entered before
            self._certificate = names(handshake.getpeercert() or {})
            return
        refusal = self._doors.enter(self, self.client[0] if self.client else "")
        if refusal is not None:
            self._refuse(*refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.leave(self)
        super().connection_lost(exc)
        # uvicorn's does so where a connection ends in peace; one that broke, and its request, would wait for that time.
        self._unset_keepalive_if_required()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._outside > self._MOST:
            self._refuse(400, "The headers are too long.")
            return
        self._outside += len(data)
        if self._owes is None and self._is_answered():  # what begins no request, such as empty lines, takes time too
            self._owes, self._since = "headers", time.monotonic()
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._outside = 0
        self._owes, self._since = "headers", time.monotonic()
        super().on_message_begin()
        if self._certificate:
            self.scope["state"]["certificate"] = self._certificate

    def on_headers_complete(self) -> None:
        self._owes, self._since, self._received = "body", time.monotonic(), 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._outside = 0
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._owes = None
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        if self.transport.get_write_buffer_size():  # or closing would wait for a client that takes nothing
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def look(self, now: float) -> None:
        """Ends the connection if the client has taken too long."""
        if self.transport is None:  # handshakes have a limit of their own
            return
        if self._reads_too_slowly(now):
            self._doors.drop("answer")
            self.transport.abort()
        elif not self.transport.is_closing() and self._sends_too_slowly(now):
            self._doors.drop(self._owes or "")
            self._refuse(408, f"The request's {self._owes} took too long.")

    def _sends_too_slowly(self, now: float) -> bool:
        limits = self._doors.limits
        if self._owes is None:
            return False
        if self.flow.read_paused or (self._owes == "headers" and not self._is_answered()):
            self._since, self._received = now, 0  # it waits for us
        allowed = limits.header_seconds
        if self._owes == "body":
            if self._received > (now - self._since) * limits.bytes_per_second:  # quick: that is no credit for later
                self._since, self._received = now, 0
            allowed = limits.body_seconds + self._received / limits.bytes_per_second
        return now - self._since > allowed

    def _reads_too_slowly(self, now: float) -> bool:
        left = self.transport.get_write_buffer_size()
        if left > self._left or not left:  # there was room for more, or all is taken
            self._left_since, self._taken = now, 0
        else:
            self._taken += self._left - left
        self._left = left
        limits = self._doors.limits
        return now - self._left_since > limits.body_seconds + self._taken / limits.bytes_per_second

    def _is_answered(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self, status: int, why: str) -> None:
        """Answers where no answer has begun, and closes."""
        self._refused = True
        if not self._is_answered() and self.cycle.response_started:
            self.transport.abort()
            return
        if (
            self.scope is not None or self._outside or status != 408
        ):  # a connection that was opened and never used is closed without a word
            lines = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: text/plain; charset=utf-8\r\n"
            if status in (429, 503):
                lines += "retry-after: 1\r\n"
            self.transport.write(f"{lines}content-length: {len(why)}\r\nconnection: close\r\n\r\n{why}".encode("ascii"))
        self.transport.close()


def names(certificate: dict[str, Any]) -> tuple[str, ...]:
    """The names that a client's certificate gives, as Python's ``ssl`` shows it: its alternative names, or else its
    common name. Empty without a certificate."""
    alternative = tuple(value for _, value in certificate.get("subjectAltName", ()))
    if alternative:
        return alternative
    subject = dict(pair for part in certificate.get("subject", ()) for pair in part)
    return (subject["commonName"],) if "commonName" in subject else ()
