"""How the process listens for HTTP: sockets, TLS, and uvicorn beside gRPC in one loop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import stat
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from critiq_server.connections import Connection, Doors
from critiq_server.security.settings import ConnectionLimits
from critiq_server.security.tls import Certificates

logger = structlog.get_logger("critiq")

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
        self._certificates = certificates
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
        """uvicorn's for given sockets, with limits on handshakes, which it has no settings for."""
        loop = asyncio.get_running_loop()

        def connect() -> Connection:
            return Connection(self.config, self.server_state, {}, loop, doors=self.doors)

        servers: list[Any] = []
        for opened in sockets or ():
            if self._certificates is None:
                servers.append(await loop.create_server(connect, sock=opened, backlog=self.config.backlog))
            else:
                limit = self._limits.header_seconds
                servers.append(_Reception(opened, connect, self.doors, self._certificates, limit))
        self.servers = servers
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        if counter % _LOOK_EVERY == 0:
            self.doors.look()
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Reception:
    """Accepts connections and shakes hands, in place of asyncio's server for TLS: that tells whose a connection is when
    the handshake is done, and says nothing of those that fail.

    Each connection begins with the certificate that is in use then, so that none is cut when it is exchanged.
    """

    def __init__(
        self,
        opened: socket.socket,
        connect: Callable[[], Connection],
        doors: Doors,
        certificates: Certificates,
        seconds: float,
    ) -> None:
        self._socket, self._connect, self._doors = opened, connect, doors
        self._certificates, self._seconds = certificates, seconds
        opened.setblocking(False)
        self._tasks: set[asyncio.Task[None]] = set()
        self._start(self._accept())

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                came, address = await loop.sock_accept(self._socket)
            except ConnectionError:  # it left before its turn
                continue
            except OSError as error:
                logger.error("cannot accept connections; trying again in a second", why=str(error))
                await asyncio.sleep(1)
                continue
            connection = self._connect()
            if self._doors.enter(connection, address[0]) is None:
                self._start(self._greet(came, connection))
            else:  # no words: they would cost the handshake
                came.close()
            await asyncio.sleep(0)  # the others' turn, however many stand in the queue

    async def _greet(self, came: socket.socket, connection: Connection) -> None:
        loop, context = asyncio.get_running_loop(), self._certificates.pair.context
        try:
            await loop.connect_accepted_socket(
                lambda: connection, came, ssl=context, ssl_handshake_timeout=self._seconds
            )
        except ConnectionAbortedError:  # by us, after that time
            self._doors.drop("handshakes")
        except OSError:
            pass  # a client that left, or that does not agree with us about TLS
        finally:
            if connection.transport is None:  # else it leaves when the connection is lost
                self._doors.leave(connection)


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


def check_free(path: Path) -> None:
    """Makes sure that a Unix socket may be put at ``path``: gRPC's library would take it from whoever has it.

    Raises:
        StartError: another server listens there, or there is a file of something else.
    """
    try:
        found = path.stat()
    except FileNotFoundError:  # nothing, or a link that leads nowhere since its server was killed
        path.unlink(missing_ok=True)
        return
    except OSError:  # to listen there will fail, and say why
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise StartError(f"server.grpc_socket: {path} is there and no socket; choose another name")
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(1.0)
        try:
            caller.connect(str(path))
        except OSError:  # its server was killed
            return
    raise StartError(f"server.grpc_socket: another server listens at {path}; stop it, or choose another name")


def taken(host: str, port: int, error: OSError, flag: str) -> str:
    """The message for a port that cannot be had."""
    if error.errno in (errno.EADDRNOTAVAIL, socket.EAI_NONAME, socket.EAI_AGAIN):
        return f"cannot listen on {host} ({error}); choose an address of this machine"
    return f"cannot listen on {in_url(host)}:{port} ({error}); stop what uses it, or choose another {flag}"


def in_url(host: str) -> str:
    """The address as it stands before a port."""
    return f"[{host}]" if ":" in host else host
