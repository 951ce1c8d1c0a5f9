"""SIGTERM to a real server process: what was accepted is answered, then it ends; a second one ends it at once."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import grpc
import httpx
import pytest

from critiq.v1 import scoring_pb2
from tests.support import requests
from tests.support.bundles import write_bundle, write_simulated
from tests.support.faces import PROTOBUF, refusal_of
from tests.support.servers import ServerProcess, server_process
from tests.support.waiting import until

SCORE = "/critiq.v1.Scoring/Score"
GONE = (httpx.ConnectError, httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)


def flags(root: Path, *more: str, batch_ms: float, max_batch: int = 4) -> list[str]:
    write_simulated(root, batch_ms=batch_ms, max_batch=max_batch)
    return ["--models", str(root), "--default", "simulated", "--load", "simulated", *more]


def message(level: int) -> bytes:
    return bytes(requests.score(requests.flat(level)).SerializeToString())


async def over_grpc(channel: grpc.aio.Channel, level: int) -> str:
    try:
        await channel.unary_unary(SCORE)(message(level), timeout=120)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.CANCELLED:
            return "RESET"
        return refusal_of(error).code or str(error.code().name)
    return "OK"


async def over_rest(http: httpx.AsyncClient, level: int) -> str:
    try:
        response = await http.post("/v1/score", content=message(level), headers={"content-type": PROTOBUF})
    except GONE:
        return "UNAVAILABLE"
    return "OK" if response.status_code == 200 else f"HTTP {response.status_code}"


async def accepted(server: ServerProcess, http: httpx.AsyncClient, count: int) -> None:
    """Returns once ``count`` pictures or more are under way."""
    limit = time.monotonic() + 120
    while True:
        found = re.search(r"^critiq_in_flight (\S+)$", (await http.get(server.metrics)).text, re.MULTILINE)
        if found and float(found[1]) >= count:
            return
        assert time.monotonic() < limit, "the requests did not arrive"
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
async def test_what_was_accepted_is_answered(tmp_path: Path, number: signal.Signals) -> None:
    with server_process(flags(tmp_path, batch_ms=600), tmp_path / "log") as server:
        async with (
            httpx.AsyncClient(base_url=server.rest, timeout=120, trust_env=False) as http,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            tasks = [asyncio.ensure_future(over_grpc(channel, level)) for level in range(20)]
            tasks += [asyncio.ensure_future(over_rest(http, level)) for level in range(20, 40)]
            await accepted(server, http, 25)
            server.process.send_signal(number)
            outcomes = Counter(await asyncio.gather(*tasks))
            assert outcomes["OK"] >= 25, outcomes
            assert set(outcomes) <= {"OK", "STOPPING", "HTTP 503", "UNAVAILABLE"}, outcomes
        assert await asyncio.to_thread(server.process.wait, 120) == 0


async def test_under_constant_load_everything_ends_in_an_answer_or_a_definite_refusal(tmp_path: Path) -> None:
    with server_process(flags(tmp_path, batch_ms=5), tmp_path / "log") as server:
        async with (
            httpx.AsyncClient(base_url=server.rest, timeout=120, trust_env=False) as http,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            outcomes: Counter[str] = Counter()
            stopped = asyncio.Event()

            async def hammer(number: int) -> None:
                while not stopped.is_set():
                    ask = over_grpc(channel, number) if number % 2 else over_rest(http, number)
                    outcomes[await ask] += 1

            hammers = [asyncio.ensure_future(hammer(number)) for number in range(16)]
            await until(lambda: outcomes["OK"] >= 200)
            server.process.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(server.process.wait, 120)
            stopped.set()
            async with asyncio.timeout(60):
                await asyncio.gather(*hammers)
        assert status == 0
        # Refused while stopping, or not connected any more; but never cut off in the middle with an error of its own.
        # gRPC itself resets what arrives in the instant in which it closes, before any handler.
        assert set(outcomes) <= {"OK", "STOPPING", "HTTP 503", "UNAVAILABLE", "RESET"}, outcomes
        assert outcomes["RESET"] <= 8, outcomes  # at the most the one call that each hammer over gRPC had just sent


async def test_a_stream_is_answered_to_its_last_item(tmp_path: Path) -> None:
    with server_process(flags(tmp_path, batch_ms=1500, max_batch=8), tmp_path / "log") as server:
        async with (
            httpx.AsyncClient(trust_env=False) as http,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            call = channel.stream_stream("/critiq.v1.Scoring/ScoreStream")()
            for item in requests.batch(
                [requests.score(requests.flat(level)) for level in range(8)], list("abcdefgh")
            ).items:
                await call.write(item.SerializeToString())
            await accepted(server, http, 7)
            server.process.send_signal(signal.SIGTERM)
            await call.done_writing()
            answers = [scoring_pb2.ScoreItemResult.FromString(data) async for data in call]
        outcomes = Counter(answer.error.code or "OK" for answer in answers)
        assert outcomes["OK"] >= 7
        assert outcomes.total() == 8
        assert set(outcomes) <= {"OK", "STOPPING"}
        assert await asyncio.to_thread(server.process.wait, 120) == 0


async def test_stopping_does_not_wait_for_connections_that_idle(tmp_path: Path) -> None:
    with server_process(flags(tmp_path, batch_ms=1), tmp_path / "log") as server:
        async with (
            httpx.AsyncClient(base_url=server.rest, trust_env=False) as http,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            assert await over_rest(http, 1) == "OK"
            idle = channel.stream_stream("/critiq.v1.Scoring/ScoreStream")()
            await idle.write(requests.batch([requests.score()], ["a"]).items[0].SerializeToString())
            await idle.read()
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.process.wait, 120) == 0
            assert time.monotonic() - started < 25


async def test_draining_has_an_end(tmp_path: Path) -> None:
    arguments = flags(tmp_path, "--set", "server.drain_seconds=0.5", batch_ms=6_000, max_batch=1)
    with server_process(arguments, tmp_path / "log") as server:
        async with (
            httpx.AsyncClient(base_url=server.rest, timeout=60, trust_env=False) as http,
            grpc.aio.insecure_channel(server.grpc) as channel,
        ):
            tasks = [asyncio.ensure_future(over_grpc(channel, level)) for level in range(3)]
            tasks += [asyncio.ensure_future(over_rest(http, level)) for level in range(3, 6)]
            await accepted(server, http, 6)
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(server.process.wait, 120)
            assert time.monotonic() - started < 30
            outcomes = Counter(await asyncio.gather(*tasks))
            assert outcomes["HTTP 503"] == 3, outcomes
            assert set(outcomes) <= {"HTTP 503", "CANCELLED", "UNAVAILABLE"}, outcomes
    assert "stopped before everything was answered" in (tmp_path / "log").read_text()


async def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with server_process(flags(tmp_path, batch_ms=25_000, max_batch=1), tmp_path / "log") as server:
        async with httpx.AsyncClient(base_url=server.rest, timeout=60, trust_env=False) as http:
            task = asyncio.ensure_future(over_rest(http, 1))
            await accepted(server, http, 1)
            server.process.send_signal(signal.SIGTERM)
            await until(lambda: "stopping" in (tmp_path / "log").read_text())
            server.process.send_signal(signal.SIGTERM)  # the same once more, as a wrapper may send it
            await asyncio.sleep(1)
            assert server.process.poll() is None
            started = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            status = await asyncio.to_thread(server.process.wait, 120)
            assert time.monotonic() - started < 15
            assert status != 0, "not everything was answered"
            assert await task != "OK"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--default", "none"], "the default model 'none' is not served"),
        (["--provider", "cuda"], "provider 'cuda' was asked for"),
        (["--set", "limits.in_flight=0"], "limits.in_flight"),
        (["--host", "no-such-host.invalid"], "choose an address of this machine"),
        (["--set", f"server.grpc_socket=/tmp/{'x' * 110}"], "a socket's name has at most 107"),
    ],
)
def test_a_server_that_cannot_start_says_why_and_ends(tmp_path: Path, arguments: list[str], words: str) -> None:
    write_bundle(tmp_path)
    command = [sys.executable, "-m", "critiq.cli", "serve", "--rest-port=0", "--grpc-port=0", "--metrics-port=0"]
    command += ["--models", str(tmp_path), "--load", "tiny", "--default", "tiny", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (1, 2)
    assert words in done.stderr
    assert "Traceback" not in done.stderr, done.stderr
