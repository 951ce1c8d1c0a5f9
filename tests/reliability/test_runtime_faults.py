"""A runtime that raises, stalls, or gives what is no number: who is affected, and how the server gets over it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2

from tests.reliability.load import FULL, Callers, callers, codes, percentile, under_load
from tests.support.bundles import write_bundle, write_simulated
from tests.support.faulty_server import POISON
from tests.support.servers import ServerProcess, server_process

pytestmark = pytest.mark.reliability
PROBE = 0.2


@contextmanager
def faulty(root: Path, model: str, *settings: str) -> Iterator[tuple[ServerProcess, Path]]:
    """A server of ``model`` and the file that says how its runtime fails."""
    mode = root / "mode"
    mode.write_text("")
    arguments = ["--models", str(root), "--default", model, "--load", model]
    for setting in (f"runtime.faults.probe_seconds={PROBE}", *settings):
        arguments += ["--set", setting]
    with server_process(
        arguments, root / "log", module="tests.support.faulty_server", environment={"FAULTS": str(mode)}
    ) as server:
        yield server, mode


def brightness(level: float) -> float:
    return level / 255


async def ready(asked: Callers) -> tuple[int, str]:
    """What REST and gRPC say of the server's readiness."""
    check = asked.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await check(health_pb2.HealthCheckRequest(service=""))
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return (await asked.http.get("/readyz")).status_code, status


UP, DOWN = (200, "SERVING"), (503, "NOT_SERVING")


async def reached(asked: Callers, state: tuple[int, str], seconds: float = 20) -> float:
    """Seconds until the server says so on both faces."""
    started = time.monotonic()
    while await ready(asked) != state:
        assert time.monotonic() - started < seconds, (await ready(asked), state)
        await asyncio.sleep(0.02)
    return time.monotonic() - started


async def faults(asked: Callers, server: ServerProcess) -> dict[str, float]:
    """The metric, by kind."""
    text = (await asked.http.get(server.metrics)).text
    found: dict[str, float] = {}
    for kind, value in re.findall(r'^critiq_stage_faults_total\{kind="(\w+)".*\} (\S+)$', text, re.MULTILINE):
        found[kind] = found.get(kind, 0) + float(value)
    return found


async def test_a_bad_picture_fails_alone_in_its_batch(tmp_path: Path) -> None:
    write_simulated(tmp_path, batch_ms=60, max_batch=32, cache=True)
    with faulty(tmp_path, "simulated") as (server, _):
        async with callers(server, float) as asked:
            rounds = 20 if FULL else 2
            good, bad = [], []
            for number in range(rounds):
                levels = range(40 * number, 40 * number + 40)
                tasks = [asyncio.ensure_future(asked.over_both(level)) for level in levels]
                poison = [asyncio.ensure_future(asked.level(level, (50 + number, 20))) for level in POISON]
                good += await asyncio.gather(*tasks)
                bad += await asyncio.gather(*poison)
            assert codes(good) == {"OK": 40 * rounds}
            assert codes(bad) == {"INTERNAL": len(POISON) * rounds}
            # Nothing was kept of it: asked again, the same pictures fail again.
            assert codes([await asked.level(level, (50, 20)) for level in POISON]) == {"INTERNAL": len(POISON)}
            assert await ready(asked) == UP
            found = await faults(asked, server)
            assert found["raised"] >= rounds
            assert found["wrong_shape"] >= rounds
            assert found["not_finite"] >= 2 * rounds
        assert server.terminate() == 0
    log = (tmp_path / "log").read_text()
    assert "model suspended" not in log
    print(f"bad pictures: {len(good)} neighbours of {len(bad)} bad ones all scored; failures counted: {found}")


async def test_pictures_that_fail_never_suspend_a_model_that_computes(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with faulty(tmp_path, "tiny") as (server, _):
        async with callers(server, brightness) as asked:
            for number in range(30):
                assert (await asked.level(201 + number % 4, (30 + number, 20))).code == "INTERNAL"
                assert (await asked.over_both(number)).code == "OK"
            assert codes([await asked.level(201, (80 + number, 20)) for number in range(20)]) == {"INTERNAL": 20}
            assert codes([await asked.over_grpc(1000 + number) for number in range(20)]) == {"OK": 20}
            assert await ready(asked) == UP
    assert "model suspended" not in (tmp_path / "log").read_text()


async def test_a_runtime_that_fails_is_suspended_and_comes_back(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with faulty(tmp_path, "tiny") as (server, mode):
        async with callers(server, brightness) as asked:
            for kind in ("raise", "nan", "shape"):
                async with under_load(asked.over_both) as outcomes:
                    await asyncio.sleep(20 if FULL else 0.3)
                    mode.write_text(kind)
                    down_after = await reached(asked, DOWN)
                    await asyncio.sleep(20 if FULL else 0.3)
                    refused = await asked.over_grpc(10**6)
                    assert refused.code == "UNAVAILABLE"
                    assert refused.hint == 1000 * PROBE
                    state = (await asked.http.get("/v1/models/tiny")).json()
                    assert state["state"] == "failed"
                    assert state["state_reason"]
                    assert "secret" not in state["state_reason"]
                    mode.write_text("")
                    up_after = await reached(asked, UP)
                    again = time.monotonic()
                    await asyncio.sleep(20 if FULL else 0.3)
                assert set(codes(outcomes)) == {"OK", "INTERNAL", "UNAVAILABLE"}, "no wrong score, nothing lost"
                assert codes([entry for entry in outcomes if entry.at > again]).keys() == {"OK"}
                assert (await asked.http.get("/v1/models/tiny")).json()["state"] == "ready"
                counts = codes(outcomes)
                print(
                    f"runtime that fails ({kind}): not ready after {down_after:.2f} s, ready {up_after:.2f} s after it "
                    f"computes; {counts['OK']} scored, {counts['INTERNAL']} failed, {counts['UNAVAILABLE']} refused "
                    "with a hint, 0 wrong"
                )
        assert server.terminate() == 0


@pytest.mark.slow
@pytest.mark.parametrize("action", ["unready", "recover"])
async def test_a_runtime_that_stalls_is_given_up_and_comes_back(tmp_path: Path, action: str) -> None:
    write_bundle(tmp_path)
    limit = 1.0
    settings = (f"runtime.faults.max_compute_seconds={limit}", f"runtime.faults.action={action}")
    with faulty(tmp_path, "tiny", *settings) as (server, mode):
        threads = psutil.Process(server.process.pid).num_threads
        async with callers(server, brightness) as asked:
            assert codes([await asked.over_both(number) for number in range(20)]) == {"OK": 20}
            before = threads()
            async with under_load(asked.over_both, first=100) as outcomes:
                await asyncio.sleep(20 if FULL else 0.5)
                mode.write_text("stall")
                if action == "unready":
                    assert await reached(asked, DOWN) < limit + 2
                await asyncio.sleep(20 if FULL else limit + 1)
                assert await ready(asked) == (DOWN if action == "unready" else UP)
                refused = await asked.over_grpc(10**6)
                assert refused.code == "UNAVAILABLE"
                assert refused.seconds < 0.8 * limit, "refused at once, not after the limit"
                during = threads()
                mode.write_text("")
                released = time.monotonic()
                while (await asked.over_grpc(10**6 + 1)).code != "OK":
                    assert time.monotonic() - released < 120
                    await asyncio.sleep(0.02)
                up_after = time.monotonic() - released
                assert await ready(asked) == UP
                await asyncio.sleep(20 if FULL else 0.5)
            # What was under way when it stalled got a definite answer; nothing waited much longer than the limit.
            assert set(codes(outcomes)) == {"OK", "UNAVAILABLE"}
            slowest = max(entry.seconds for entry in outcomes)
            assert slowest < limit + 3
            assert during <= before + 8, "threads are not lost without end"
            after = threads()
            assert after <= before + 2
            assert (await faults(asked, server))["stalled"] >= 1
        assert server.terminate() == 0
    counts = codes(outcomes)
    print(
        f"runtime that stalls ({action}): slowest answer {slowest:.2f} s with a limit of {limit:g} s, serves "
        f"{up_after:.2f} s after it computes; {counts['OK']} scored (p99 {percentile(outcomes, 0.99) * 1000:.0f} ms), "
        f"{counts['UNAVAILABLE']} refused; threads {before}, {during} while it stalls, {after} afterwards"
    )


@pytest.mark.slow
async def test_a_server_whose_runtime_stalls_stops_all_the_same(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with faulty(tmp_path, "tiny", "server.drain_seconds=2") as (server, mode):
        async with callers(server, brightness) as asked:
            mode.write_text("stall")
            waiting = asyncio.ensure_future(asked.over_grpc(1))
            await asyncio.sleep(0.5)
            started = time.monotonic()
            await asyncio.to_thread(server.terminate)
            assert time.monotonic() - started < 60
            assert (await waiting).code in ("LOST", "STOPPING", "CANCELLED", "UNAVAILABLE")
            with pytest.raises(grpc.aio.AioRpcError):
                await ready(asked)
