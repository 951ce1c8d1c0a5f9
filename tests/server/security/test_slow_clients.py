"""Clients that are slow, silent or too many, on real sockets: each is let go in time, and others are answered."""

from __future__ import annotations

import asyncio
import gc
import random
import socket
import ssl
import struct
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvloop
from PIL import Image

import critiq
from critiq_server.app import App
from tests.support.bundles import write_bundle
from tests.support.certificates import Authority
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

QUICK = {"header_seconds": 0.6, "body_seconds": 0.6, "bytes_per_second": 100_000, "keep_alive_seconds": 0.6}
HEADERS = b"POST /v1/score HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"


@asynccontextmanager
async def serving(root: Path, tls: bool = False, **limits: Any) -> AsyncIterator[tuple[App, ssl.SSLContext | None]]:
    if not (root / "bundles").exists():
        write_bundle(root / "bundles")
    security: dict[str, Any] = {}
    context = None
    if tls:
        authority = Authority(root / "tls")
        files = authority.server()
        security = {"tls": {"certificate": files.certificate, "key": files.key}}
        context = authority.trust()
    async with running(make_settings(root / "bundles", limits={**QUICK, **limits}, security=security)) as app:
        yield app, context


class Wire:
    """A client that sends what it is told to, when it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int, context: ssl.SSLContext | None = None) -> AsyncIterator[Wire]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            yield cls(reader, writer)
        finally:
            writer.close()

    async def trickle(self, data: bytes, pause: float = 0.05) -> None:
        """A byte at a time until it is done or the server has had enough."""
        try:
            for byte in data:
                self.writer.write(bytes([byte]))
                await self.writer.drain()
                await asyncio.sleep(pause)
        except ConnectionError:
            pass

    async def rest(self) -> bytes:
        """Whatever still comes until the server closes."""
        came = b""
        try:
            async with asyncio.timeout(60):
                while part := await self.reader.read(2**16):
                    came += part
        except ConnectionError:  # it closes although we go on sending
            pass
        return came


def dropped(app: App, reason: str) -> float:
    return float(app.metrics.connections_dropped.labels("rest", reason)._value.get())


@pytest.mark.parametrize("tls", [False, True])
async def test_headers_and_bodies_have_a_time_limit(tmp_path: Path, tls: bool) -> None:
    async with serving(tmp_path, tls) as (app, context):
        for sent, trickled, reason in (
            (HEADERS, b"X-Slow: " + b"a" * 200, "headers"),
            (b"", b"\r\n" * 100, "headers"),
            (HEADERS + b"Content-Length: 1000\r\n\r\n", b"a" * 200, "body"),
            (HEADERS + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 50, "body"),
        ):
            async with Wire.to(app.rest_port, context) as wire:
                started = time.monotonic()
                wire.writer.write(sent)
                slow = asyncio.create_task(wire.trickle(trickled))
                answer = await wire.rest()
                assert answer.startswith(b"HTTP/1.1 408 "), (reason, answer)
                assert reason.encode() in answer
                assert time.monotonic() - started < 40
                await slow
            assert dropped(app, reason) >= 1


async def test_nothing_is_kept_of_a_connection_that_breaks(tmp_path: Path) -> None:
    async with serving(tmp_path, keep_alive_seconds=600) as (app, _), Wire.to(app.rest_port) as wire:
        wire.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await wire.reader.readuntil(b"\r\n\r\n")
        (connection,) = map(weakref.ref, app._rest.server_state.connections)
        reset = struct.pack("ii", 1, 0)  # closing resets, as a client's end does that has not read all
        wire.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        wire.writer.transport.abort()
        await until(lambda: gc.collect() >= 0 and connection() is None)


async def test_a_connection_that_is_never_used_is_closed_without_a_word(tmp_path: Path) -> None:
    async with serving(tmp_path) as (app, _), Wire.to(app.rest_port) as wire:
        assert await wire.rest() == b""


async def test_an_idle_connection_is_closed_and_one_in_use_is_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as (app, _), Wire.to(app.rest_port) as wire:
        for _ in range(4):
            wire.writer.write(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await wire.reader.readuntil(b"}")).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.3)  # together longer than any limit
        started = time.monotonic()
        await wire.rest()
        assert time.monotonic() - started < 40


async def test_a_steady_body_may_take_longer(tmp_path: Path) -> None:
    """At the rate that is due, a body has as long as it needs."""
    file = BytesIO()
    Image.frombytes("RGB", (400, 300), random.Random(1).randbytes(360_000)).save(file, "PNG")
    picture = file.getvalue()
    async with serving(tmp_path, bytes_per_second=20_000) as (app, _), Wire.to(app.rest_port) as wire:
        wire.writer.write(HEADERS + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(picture))
        started = time.monotonic()
        for start in range(0, len(picture), 18_000):
            wire.writer.write(picture[start : start + 18_000])
            await asyncio.sleep(0.1)
        assert time.monotonic() - started > 1.5
        assert b"200 OK" in await wire.rest()


async def test_a_quick_beginning_is_no_leave_to_fall_silent(tmp_path: Path) -> None:
    async with serving(tmp_path, bytes_per_second=1000) as (app, _), Wire.to(app.rest_port) as wire:
        wire.writer.write(HEADERS + b"Content-Length: 70000\r\n\r\n" + bytes(60_000))  # a minute's worth
        started = time.monotonic()
        assert b"408 Request Timeout" in await wire.rest()
        assert time.monotonic() - started < 40


async def test_an_answer_that_nobody_takes_is_given_up(tmp_path: Path) -> None:
    """Pipelined requests whose answers fill every buffer."""
    async with serving(tmp_path) as (app, _):
        with socket.create_connection(("127.0.0.1", app.rest_port)) as deaf:
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            deaf.setblocking(False)
            request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
            loop = asyncio.get_running_loop()
            flood = asyncio.create_task(loop.sock_sendall(deaf, request * 400))
            await until(lambda: app.metrics.connections_dropped.labels("rest", "answer")._value.get() == 1)
            await until(lambda: len(app._rest.doors) == 0)
            await asyncio.gather(flood, return_exceptions=True)


@pytest.mark.parametrize("tls", [False, True])
async def test_two_hundred_half_open_connections_stop_nobody(tmp_path: Path, tls: bool) -> None:
    async with serving(tmp_path, tls, header_seconds=2.0) as (app, context), AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire.to(app.rest_port)) for _ in range(200)]  # TLS: no handshake
        for number, wire in enumerate(wires):
            wire.writer.write((b"\x16\x03\x01\x02\x00" if tls else HEADERS)[: number % 20])
        url = f"http{'s' * tls}://127.0.0.1:{app.rest_port}"
        started = time.monotonic()
        async with httpx.AsyncClient(verify=context or False) as client:
            for _ in range(5):
                assert (
                    await client.post(f"{url}/v1/score", content=flat(), headers={"content-type": "image/png"})
                ).json()
        assert time.monotonic() - started < 40
        answers = await asyncio.gather(*(wire.rest() for wire in wires))
        assert {answer[:12] for answer in answers} <= {b"", b"HTTP/1.1 408"}
        assert tls or sum(bool(answer) for answer in answers) == 190, "those that had sent something are told"


async def test_connections_are_limited(tmp_path: Path) -> None:
    limits = {**QUICK, "header_seconds": 20.0}
    async with serving(tmp_path, **{**limits, "connections": 3}) as (app, _), AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire.to(app.rest_port)) for _ in range(5)]
        for wire in wires[3:]:
            assert (await wire.rest()).startswith(b"HTTP/1.1 503 ")
        async with Wire.to(app.metrics_port) as wire:  # a port's own
            wire.writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert b'critiq_connections{port="rest"} 3.0' in await wire.rest()
        wires[0].writer.close()
        await until(lambda: len(app._rest.doors) < 3)
        async with httpx.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{app.rest_port}/healthz")).status_code == 200
    async with (
        serving(tmp_path, **{**limits, "connections_per_address": 1}) as (app, _),
        Wire.to(app.rest_port),
        Wire.to(app.rest_port) as second,
    ):
        assert (await second.rest()).startswith(b"HTTP/1.1 429 ")


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_one_address_cannot_close_a_tls_port(tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """Handshakes count as connections of their address, from the first packet until the socket is closed."""

    async def answered(app: App, context: ssl.SSLContext | None) -> bool:
        async with httpx.AsyncClient(verify=context or False) as client:
            return (await client.get(f"https://127.0.0.1:{app.rest_port}/healthz")).status_code == 200

    async def scenario() -> None:
        limits = {"header_seconds": 20.0, "connections": 30, "connections_per_address": 2}
        async with serving(tmp_path, tls=True, **limits) as (app, context):
            silent = [silent_client(app.rest_port, "127.0.0.2") for _ in range(40)]
            await until(lambda: dropped(app, "address") == 38)
            assert len(app._rest.doors) == 2
            assert await answered(app, context)
            for client in silent:
                client.close()
            await until(lambda: len(app._rest.doors) == 0)

            silent = [silent_client(app.rest_port, f"127.0.0.{number}") for number in range(2, 52)]
            await until(lambda: dropped(app, "full") == 20)
            with pytest.raises(httpx.ConnectError):
                await answered(app, context)
            for client in silent:
                client.close()
            await until(lambda: len(app._rest.doors) == 0)
            assert await answered(app, context)

    run(scenario())


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_handshake_has_a_time_limit(tmp_path: Path, run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    async def scenario() -> None:
        async with serving(tmp_path, tls=True) as (app, _), Wire.to(app.rest_port) as wire:
            assert await wire.rest() == b""
            assert dropped(app, "handshakes") == 1
            assert len(app._rest.doors) == 0
            async with Wire.to(app.rest_port) as other:
                other.writer.write(HEADERS)  # no TLS
                await other.rest()
            assert dropped(app, "handshakes") == 1
            assert len(app._rest.doors) == 0

    run(scenario())


def silent_client(port: int, address: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), source_address=(address, 0))


async def test_grpc_metadata_is_limited_and_handshakes_end(tmp_path: Path) -> None:
    async with serving(tmp_path, tls=True, grpc_metadata_bytes=8192) as (app, _), Wire.to(app.grpc_port) as wire:
        started = time.monotonic()
        await wire.rest()
        assert time.monotonic() - started < 40
    async with serving(tmp_path, grpc_metadata_bytes=8192, grpc_idle_seconds=0.5) as (app, _):
        url = f"127.0.0.1:{app.grpc_port}"
        async with critiq.AsyncClient(url, headers={"x-long": "a" * 20_000}, retries=0) as client:
            with pytest.raises(critiq.CritiqError, match=r"metadata|header"):
                await client.score(flat())
        async with critiq.AsyncClient(url, headers={"x-long": "a" * 4000}, retries=0) as client:
            assert (await client.score(flat())).scores
            await asyncio.sleep(1.2)  # the server has closed it; the client connects again by itself
            assert (await client.score(flat())).scores
