"""How the process listens for HTTP: sockets, and uvicorn beside gRPC in one loop."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class _Http(HttpToolsProtocol):
    """uvicorn's, which would collect any number of headers and trailers: no limit on bodies counts them."""

    _MOST = 2**16
    _outside = 0
    """Bytes since a request began, or since the last of its body."""

    def data_received(self, data: bytes) -> None:
        if self._outside > self._MOST:
            self.send_400_response("The headers are too long.")
            return
        self._outside += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._outside = 0
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        self._outside = 0
        super().on_body(body)


class HttpFace(uvicorn.Server):
    """One ASGI application on its port: uvicorn beside gRPC in one loop. The process handles the signals, not it."""

    def __init__(self, app: Any) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Http,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=2,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def open_socket(host: str, port: int) -> socket.socket:
    """Listens on the port, 0: any free one; raises ``OSError`` if it is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.create_server((host, port), family=family, backlog=4096)
    # Connections inherit it. uvloop sets it by itself; asyncio does not for such sockets, and answers of two writes
    # would wait 40 ms for the caller's acknowledgement.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened
