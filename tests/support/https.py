"""A web server on loopback with a certificate of the tests' own authority, and the names under which it is reached."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

LOOPBACK = "127.0.0.1"


def make_certificate(folder: Path, *names: str) -> tuple[Path, Path]:
    """Key and certificate for these DNS names; the certificate is its own authority."""
    folder.mkdir(parents=True, exist_ok=True)
    key, chain = folder / "key.pem", folder / "chain.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test"
    subject = ",".join(f"DNS:{name}" for name in names)
    files = ["-addext", f"subjectAltName={subject}", "-keyout", str(key), "-out", str(chain)]
    subprocess.run([*command.split(), *files], check=True, capture_output=True, timeout=60)
    return key, chain


@dataclass(frozen=True)
class Asked:
    """A request as it arrived."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes


Reply = Callable[[Asked, asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Website:
    """``reply`` writes each answer, byte for byte: so it may break every rule."""

    reply: Reply
    port: int = 0
    asked: list[Asked] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.asked.append(Asked(method, target, headers, body))
            await self.reply(self.asked[-1], writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A whole HTTP answer."""
    lines = [f"HTTP/1.1 {status} Some", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


@asynccontextmanager
async def website(reply: Reply, certificate: tuple[Path, Path] | None = None, port: int = 0) -> AsyncIterator[Website]:
    """Runs one, over TLS if it has a certificate; ``port`` 0: any free one."""
    site = Website(reply)
    context = None
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate[1], certificate[0])
        context.sni_callback = lambda _socket, name, _context: site.server_names.append(name)
    server = await asyncio.start_server(site.handle, LOOPBACK, port, ssl=context)
    site.port = server.sockets[0].getsockname()[1]
    try:
        yield site
    finally:
        server.close()
