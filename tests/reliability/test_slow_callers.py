"""Callers that open connections and say next to nothing, beside callers with requests."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import psutil
import pytest

from tests.reliability.load import FULL, callers, codes, percentile, under_load
from tests.support.bundles import write_bundle
from tests.support.servers import server_process

pytestmark = pytest.mark.reliability
SLOW = 500 if FULL else 100
HEAD = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 100000\r\n"
SAYINGS = {"nothing": b"", "half a head": HEAD, "half a body": HEAD + b"\r\n" + bytes(100)}


async def slow_caller(host: str, port: int, saying: bytes) -> float:
    """Says so much, then a byte every half a second; how long it was borne with, in seconds."""
    started = time.monotonic()
    reader, writer = await asyncio.open_connection(host, port)
    with contextlib.suppress(OSError):
        writer.write(saying)
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    if await reader.read(1000) == b"":
                        break
                    continue
            if saying:
                writer.write(b"x")
                await writer.drain()
    writer.close()
    return time.monotonic() - started


@pytest.mark.slow
async def test_half_open_connections_cost_the_others_nothing(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    arguments = ["--models", str(tmp_path), "--default", "tiny", "--load", "tiny"]
    allowed = 4.0 if FULL else 1.5
    for name in ("header_seconds", "body_seconds", "keep_alive_seconds"):
        arguments += ["--set", f"limits.{name}={allowed}"]
    with server_process(arguments, tmp_path / "log") as server:
        process = psutil.Process(server.process.pid)
        async with callers(server, lambda level: level / 255) as asked:
            async with under_load(asked.over_both, 4) as outcomes:
                await asyncio.sleep(10 if FULL else 1)
                files = process.num_fds()
                started = time.monotonic()
                ports = [server.rest.removeprefix("http://").split(":"), server.grpc.split(":")]
                waits = [
                    asyncio.ensure_future(slow_caller(ports[at % 2][0], int(ports[at % 2][1]), saying))
                    for at in range(SLOW)
                    for saying in [list(SAYINGS.values())[at // 2 % 3]]
                ]
                await asyncio.sleep(0.5)
                most = process.num_fds()
                async with asyncio.timeout(90):
                    borne = await asyncio.gather(*waits)
                ended = time.monotonic()
                await asyncio.sleep(10 if FULL else 1)
                left = process.num_fds()
            before = [entry for entry in outcomes if entry.at < started]
            beside = [entry for entry in outcomes if started <= entry.at < ended]
            assert codes(outcomes).keys() == {"OK"}, codes(outcomes)
            assert percentile(beside, 0.99) < 2
            assert most > files + SLOW // 2
            assert left < files + 20, "their connections are gone"
        assert await asyncio.to_thread(server.terminate) == 0
    print(
        f"slow callers: {SLOW} half-open connections, the last closed after {max(borne):.1f} s (limit {allowed:g} s); "
        f"p99 of others {1000 * percentile(before, 0.99):.0f} ms before, "
        f"{1000 * percentile(beside, 0.99):.0f} ms beside them; none of {len(outcomes)} failed"
    )
