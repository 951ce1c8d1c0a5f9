"""Redis is killed, frozen and started again while requests come in: callers notice nothing but the time it takes."""

from __future__ import annotations

import asyncio
import json
import re
import time
from pathlib import Path

import pytest

from tests.reliability.load import FULL, Callers, Outcome, callers, codes, percentile, under_load
from tests.support.bundles import write_bundle
from tests.support.redis_server import redis_server
from tests.support.servers import ServerProcess, server_process

pytestmark = pytest.mark.reliability
PHASE = 12 if FULL else 1.5


@pytest.mark.slow
async def test_redis_killed_frozen_and_restarted_under_load(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with redis_server() as redis:
        arguments = ["--models", str(tmp_path), "--default", "tiny", "--load", "tiny"]
        stores = {"also": ["tiny/image_encoder"], "redis": {"url": redis.url}}
        # Nothing in memory: whatever is found was found in Redis.
        arguments += ["--set", "engine.store_mb=0", "--set", f"features={json.dumps(stores)}"]
        with server_process(arguments, tmp_path / "log") as server:
            async with callers(server, lambda level: level / 255) as asked:

                async def ask(number: int) -> Outcome:
                    return await asked.over_both(number % 400)  # the same pictures again and again

                phases: dict[str, list[Outcome]] = {}
                async with under_load(ask, 4) as outcomes:
                    for name, act in {
                        "there": lambda: None,
                        "killed": redis.kill,
                        "back": redis.start,
                        "frozen": redis.freeze,
                        "thawed": redis.thaw,
                    }.items():
                        await asyncio.to_thread(act)
                        hits, started = await found(asked, server), time.monotonic()
                        await asyncio.sleep(PHASE)
                        if name in ("back", "thawed"):
                            while await found(asked, server) == hits:
                                assert time.monotonic() - started < 60, f"it is not asked again once it is {name}"
                                await asyncio.sleep(0.05)
                        phases[name] = [entry for entry in outcomes if entry.at >= started]
                assert codes(outcomes).keys() == {"OK"}, codes(outcomes)
                slowest = {name: max(entry.seconds for entry in done) for name, done in phases.items()}
                assert all(slowest[name] < 10 for name in slowest), slowest  # seconds, where a hang would be a minute
                assert await found(asked, server) > 0
            assert await asyncio.to_thread(server.terminate) == 0
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    times = ", ".join(
        f"{name} {1000 * percentile(done, 0.5):.0f} / {1000 * percentile(done, 0.99):.0f} / {1000 * slowest[name]:.0f}"
        for name, done in phases.items()
    )
    print(f"Redis: {len(outcomes)} scored, none failed or wrong; ms p50 / p99 / slowest while it is {times}")


async def found(asked: Callers, server: ServerProcess) -> float:
    """Features that Redis had."""
    text = (await asked.http.get(server.metrics)).text
    hits = re.search(r'^critiq_feature_lookups_total\{outcome="hit",tier="network"\} (\S+)$', text, re.MULTILINE)
    return float(hits[1]) if hits else 0.0
