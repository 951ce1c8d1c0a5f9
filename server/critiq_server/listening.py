"""How the process listens for HTTP: sockets, TLS, and uvicorn beside gRPC in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import uvicorn

from critiq_server.connections import Connection, Doors
from critiq_server.security.settings import ConnectionLimits
from critiq_server.security.tls import Certificates

_LOOK_EVERY = 5
"""uvicorn's ticks, of a tenth of a second, between looks at what clients owe."""


class HttpFace(uvicorn.Server):
    """One ASGI application on its port: uvicorn beside gRPC in one loop. The process handles the signals, not it.

    Args:
        certificates: TLS with the pair that is in use when a connection begins; ``None``: no TLS.
        on_drop: is told why a connection was refused or cut.
    """

    def __init__(
        self,
        app: Any,
        limits: ConnectionLimits,
        certificates: Certificates | None = None,
        on_drop: Callable[[str], None] = lambda reason: None,
    ) -> None:
        self.doors = Doors(limits, on_drop)
        self._limits = limits
        self._tls = None if certificates is None else _Tls(certificates, self.doors)
        super().__init__(
            uvicorn.Config(
                app,
                http=Connection,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=2,
                timeout_keep_alive=limits.keep_alive_seconds,  # type: ignore[arg-type]  # it is only added to a time
            )
        )

    async def startup(self, sockets: Sequence[socket.socket] | None = None) -> None:
        """uvicorn's for given sockets, with a time limit on handshakes, which it has no setting for."""
        loop = asyncio.get_running_loop()

        def connect() -> asyncio.Protocol:
            return Connection(self.config, self.server_state, {}, loop, doors=self.doors)

        limit = None if self._tls is None else self._limits.header_seconds
        self.servers = [
            await loop.create_server(
                connect, sock=opened, ssl=self._tls, ssl_handshake_timeout=limit, backlog=self.config.backlog
            )
            for opened in sockets or ()
        ]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        if counter % _LOOK_EVERY == 0:
            self.doors.look()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Tls(ssl.SSLContext):
    """Begins each connection with the certificate that is in use then, so that none is cut when it is exchanged."""

    _certificates: Certificates
    _doors: Doors

    def __new__(cls, certificates: Certificates, doors: Doors) -> _Tls:
        made = super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)
        made._certificates, made._doors = certificates, doors
        return made

    def __init__(self, certificates: Certificates, doors: Doors) -> None:
        super().__init__()

    def wrap_bio(self, *arguments: Any, **named: Any) -> ssl.SSLObject:
        return self._doors.knock(lambda: self._certificates.pair.context.wrap_bio(*arguments, **named))


class StartError(Exception):
    """The server cannot start; the message says why and what to do."""


def open_socket(host: str, port: int, flag: str) -> socket.socket:
    """Listens on the port, 0: any free one.

    Args:
        flag: what chooses the port, for the message.

    Raises:
        StartError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        opened = socket.create_server((host, port), family=family, backlog=4096)
    except OSError as error:
        raise StartError(taken(host, port, error, flag)) from error
    # Connections inherit it. uvloop sets it by itself; asyncio does not for such sockets, and answers of two writes
    # would wait 40 ms for the caller's acknowledgement.
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return opened


def taken(host: str, port: int, error: OSError, flag: str) -> str:
    """The message for a port that cannot be had."""
    return f"cannot listen on {host}:{port} ({error}); stop what uses it, or choose another {flag}"
