"""What a key may ask for is the same however many processes answer, whichever of them dies, and after a restart."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import psutil
import pytest

import critiq
from critiq_server.security.keys import append, new_key
from tests.support.bundles import write_bundle
from tests.support.requests import flat
from tests.support.servers import ServerProcess, make_settings, running, server_process
from tests.support.waiting import until, until_async

pytestmark = [pytest.mark.slow, pytest.mark.skipif(os.name == "nt", reason="several processes need Linux or macOS")]


@asynccontextmanager
async def connection_to_each(server: ServerProcess) -> AsyncIterator[dict[int, httpx.AsyncClient]]:
    """By process: a client that keeps one connection to it."""
    found: dict[int, httpx.AsyncClient] = {}
    async with AsyncExitStack() as stack:
        for _ in range(60):
            one = httpx.Limits(max_connections=1)
            client = await stack.enter_async_context(httpx.AsyncClient(base_url=server.rest, limits=one, timeout=120))
            answered = await client.get("/healthz")
            _, port = answered.extensions["network_stream"].get_extra_info("client_addr")
            found.setdefault(await asyncio.to_thread(who_answers, server, port), client)
            if len(found) == 2:
                break
        assert len(found) == 2, "all connections reach the same process"
        yield found


def who_answers(server: ServerProcess, port: int) -> int:
    """The process that has a connection from or to this port, of which there is one."""
    for child in psutil.Process(server.process.pid).children():
        for connection in child.net_connections("tcp"):
            if connection.raddr and port in (connection.raddr.port, connection.laddr.port):
                return child.pid
    raise AssertionError(f"nobody has the connection at {port}")


async def endless() -> AsyncIterator[bytes]:
    yield flat(7)
    await asyncio.Event().wait()


async def score(client: httpx.AsyncClient, key: str) -> int:
    return (await client.post("/v1/score", files={"image": flat(7)}, headers={"x-api-key": key})).status_code


def flags(root: Path) -> list[str]:
    write_bundle(root / "models")
    loaded = ["--models", str(root / "models"), "--default", "tiny", "--load", "tiny"]
    return [*loaded, "--set", f"security.keys_file={root / 'keys.yaml'}"]


async def test_two_processes_give_what_one_gives_whatever_becomes_of_them(tmp_path: Path) -> None:
    daily, entry = new_key("daily", ["score"], requests_per_day=20)
    append(tmp_path / "keys.yaml", entry)
    single, entry = new_key("single", ["score"], concurrency=1)
    append(tmp_path / "keys.yaml", entry)
    log = tmp_path / "log"
    with server_process(["--workers=2", *flags(tmp_path)], log) as server:
        async with connection_to_each(server) as clients:
            async with critiq.AsyncClient(f"grpc://{server.grpc}", api_key=daily) as stream:
                found = [item.error async for item in stream.score_stream([flat(level) for level in range(4)])]
                assert found == [None] * 4
            answers: Counter[int] = Counter()

            async def calls(client: httpx.AsyncClient) -> None:
                for _ in range(15):
                    answers[await score(client, daily)] += 1

            await asyncio.gather(*map(calls, clients.values()))
            assert answers == {200: 16, 429: 14}

            async with critiq.AsyncClient(f"grpc://{server.grpc}", api_key=single, retries=0) as caller:
                held = caller.score_stream(endless())
                await anext(held)
                holder = await asyncio.to_thread(who_answers, server, int(server.grpc.rpartition(":")[2]))
                other = next(client for process, client in clients.items() if process != holder)
                for client in clients.values():
                    assert await score(client, single) == 429
                psutil.Process(holder).kill()
                with pytest.raises(critiq.Unavailable):
                    await anext(held)

                async def is_free() -> bool:
                    return await score(other, single) == 200

                await until_async(is_free)
        await until(lambda: "process ready" in log.read_text(), 60)
        server.process.send_signal(signal.SIGHUP)
        await until(lambda: "all processes replaced" in log.read_text())
        async with connection_to_each(server) as clients:
            assert [await score(client, daily) for client in clients.values()] == [429, 429]
        assert await asyncio.to_thread(server.terminate) == 0
    assert "fault" not in log.read_text()


async def test_a_server_that_is_killed_and_started_again_knows_what_was_spent(tmp_path: Path) -> None:
    text, entry = new_key("caller", ["score"], requests_per_day=2, concurrency=1)
    append(tmp_path / "keys.yaml", entry)
    keeping = ["--set", f"security.limits_directory={tmp_path / 'counts'}"]
    with server_process([*flags(tmp_path), *keeping], tmp_path / "log") as server:
        async with critiq.AsyncClient(f"grpc://{server.grpc}", api_key=text, retries=0) as caller:
            await anext(caller.score_stream(endless()))
            server.process.kill()
            server.process.wait()
    security = {"keys_file": tmp_path / "keys.yaml", "limits_directory": tmp_path / "counts"}
    async with (
        running(make_settings(tmp_path / "models", security=security)) as app,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}") as client,
    ):
        assert [await score(client, text) for _ in range(2)] == [200, 429]
