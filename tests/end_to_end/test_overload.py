"""Two thousand requests at once against a server that takes 64: each ends, memory stays, it serves on."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import httpx
import psutil
import pytest

from tests.support import requests
from tests.support.bundles import write_bundle
from tests.support.faces import PROTOBUF, refusal_of
from tests.support.servers import server_process

CALLS = 2000
LIMIT = 64
GROWTH = 150 * 2**20
Ask = Callable[[int], Awaitable[str]]


def message(number: int) -> bytes:
    """Distinct pictures, as JPEG files of some size: the decoder has work to do."""
    picture = requests.flat(number % 256, size=(300 + number // 256, 300), kind="JPEG")
    return bytes(requests.score(picture, "a red cat").SerializeToString())


async def posted(url: str, content: bytes) -> str:
    """OK or the code of the refusal, over a connection of its own: two thousand at once choke a client's pool."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST /v1/score HTTP/1.1\r\nhost: {host}\r\ncontent-type: {PROTOBUF}\r\naccept: application/json\r\n"
    writer.write(f"{head}connection: close\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)
    answer = await reader.read()
    writer.close()
    head, _, body = answer.decode().partition("\r\n\r\n")
    if head.startswith("HTTP/1.1 200 "):
        return "OK"
    assert "retry-after: " in head.lower(), head
    return str(json.loads(body)["error"]["code"])


async def flood(ask: Ask) -> Counter[str]:
    async with asyncio.timeout(120):
        return Counter(await asyncio.gather(*(ask(number) for number in range(CALLS))))


@pytest.fixture
def enough_files() -> Iterator[None]:
    """Every connection is an open file, here and in the server, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8192)) if hard > 0 else 8192, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.slow
@pytest.mark.usefixtures("enough_files")
async def test_a_flood_over_both_faces(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    arguments = ["--models", str(tmp_path), "--default", "tiny", "--load", "tiny"]
    arguments += ["--set", f"limits.in_flight={LIMIT}", "--set", f"limits.batch_items={LIMIT}"]
    messages = [message(number) for number in range(CALLS)]
    with server_process(arguments, tmp_path / "log") as server:
        process = psutil.Process(server.process.pid)
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):

            async def over_grpc(number: int) -> str:
                try:
                    await channel.unary_unary("/critiq.v1.Scoring/Score")(messages[number], timeout=120)
                except grpc.aio.AioRpcError as error:
                    refusal = refusal_of(error)
                    assert refusal.retry_after_ms, refusal
                    return refusal.code
                return "OK"

            async def over_rest(number: int) -> str:
                return await posted(server.rest, messages[number])

            for number in range(20):
                assert await over_grpc(number) == "OK"
                assert await over_rest(number) == "OK"
            before = process.memory_info().rss
            for ask in (over_grpc, over_rest):
                outcomes = await flood(ask)
                assert set(outcomes) <= {"OK", "TOO_BUSY"}, outcomes
                assert outcomes["OK"] >= LIMIT, "what fits is served"
                assert outcomes.total() == CALLS
            assert process.memory_info().rss - before < GROWTH
            # And afterwards it is as if nothing had been.
            for number in range(20):
                assert await over_grpc(number) == "OK"
                assert await over_rest(number) == "OK"
            metrics = (await http.get(server.metrics)).text
            assert "\ncritiq_in_flight 0.0\n" in metrics
            assert "\ncritiq_in_flight_bytes 0.0\n" in metrics
        assert await asyncio.to_thread(server.terminate) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_callers_that_send_half_a_request_and_vanish_cost_nothing(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    arguments = ["--models", str(tmp_path), "--default", "tiny", "--load", "tiny"]
    with server_process(arguments, tmp_path / "log") as server:
        host, port = server.rest.removeprefix("http://").split(":")
        head = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 1000000\r\n\r\n"
        for _ in range(50):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(head + bytes(1000))
        async with httpx.AsyncClient(base_url=server.rest, trust_env=False) as http:
            response = await http.post("/v1/score", content=requests.flat(), headers={"content-type": "image/png"})
            assert response.status_code == 200
            assert "\ncritiq_in_flight 0.0\n" in (await http.get(server.metrics)).text
        assert await asyncio.to_thread(server.terminate) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
