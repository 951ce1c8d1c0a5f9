"""The clock is set a day forward, two days back, and right again, while requests come in and a callback waits."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

import critiq
from critiq_server.security.keys import append, new_key
from tests.reliability.load import FULL, callers, codes, percentile, under_load
from tests.support.bundles import write_bundle
from tests.support.https import Asked, answer, website
from tests.support.receiver import receiving
from tests.support.requests import flat
from tests.support.servers import server_process

pytestmark = pytest.mark.reliability
DAY = 86_400
PHASE = 15 if FULL else 1.0
STEPS = {"a day ahead": DAY, "a day behind": -DAY, "right again": 0}


@pytest.mark.slow
async def test_the_clock_is_set_while_requests_come_in(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models")
    clock, keys = tmp_path / "clock", tmp_path / "keys.yaml"
    clock.write_text("0")
    text, entry = new_key("caller", ["score", "metrics"], requests_per_day=10**6, requests_per_second=10_000.0)
    append(keys, entry)
    refused: list[float] = []

    async def unwilling(asked: Asked, writer: asyncio.StreamWriter) -> None:
        """A receiver that does not verify, and takes nothing for a while."""
        refused.append(time.monotonic())
        writer.write(answer(503))
        await writer.drain()

    async with website(unwilling) as site, receiving() as receiver:
        url = f"http://localhost:{site.port}/hook"
        told = receiver.settings(ports=[site.port], first_pause_seconds=1.0, longest_pause_seconds=1.0)
        arguments = ["--models", str(tmp_path / "models"), "--default", "tiny", "--load", "tiny"]
        drift = {"directory": str(tmp_path / "drift"), "check_seconds": 0.2}
        arguments += ["--set", f"jobs.path={tmp_path / 'jobs.db'}", "--set", f"jobs.callbacks={json.dumps(told)}"]
        arguments += ["--set", f"security.keys_file={keys}", "--set", f"drift={json.dumps(drift)}"]
        with server_process(
            arguments, tmp_path / "log", module="tests.support.shifted_clock", environment={"CLOCK": str(clock)}
        ) as server:
            async with (
                callers(server, lambda level: level / 255, key=text) as asked,
                critiq.AsyncClient(server.rest, api_key=text) as client,
            ):
                phases = {}
                async with under_load(asked.over_both, 4) as outcomes:
                    job = await client.submit_job([flat(1)], callback=url)
                    await client.wait_job(job.id, timeout=120)
                    for name, seconds in STEPS.items():
                        clock.write_text(str(seconds))
                        at = time.monotonic()
                        other = await client.submit_job([flat(2)])
                        assert (await client.wait_job(other.id, timeout=120)).failed == 0
                        await asyncio.sleep(PHASE)
                        # The callback is tried on and on: not a day later, and not given up before its time.
                        count = len(refused)
                        while len(refused) < count + 2:
                            assert time.monotonic() - at < PHASE + 30, f"the callback rests while the clock is {name}"
                            await asyncio.sleep(0.05)
                        phases[name] = [outcome for outcome in outcomes if outcome.at >= at]
                assert codes(outcomes).keys() == {"OK"}, codes(outcomes)
                short = {"critiq-timeout-ms": "1", "content-type": "image/png"}
                late = await asked.http.post("/v1/score", content=flat(3, (2000, 2000)), headers=short)
                assert late.status_code == 504
        # Signed at the time that the clock shows, callbacks are taken by a receiver whose clock agrees.
        receiver.events.clear()
        told = receiver.settings()
        with server_process(
            [*arguments, "--set", f"jobs.callbacks={json.dumps(told)}"], tmp_path / "second.log"
        ) as server:
            async with critiq.AsyncClient(server.rest, api_key=text) as client:
                job = await client.submit_job([flat(4)], callback=receiver.url)
                ((_, event),) = await receiver.told()
                assert event["data"]["id"] == job.id
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "the clock was set" in log
    times = ", ".join(f"{name} {1000 * percentile(done, 0.99):.0f}" for name, done in phases.items())
    print(
        f"clock: {len(outcomes)} scored, none failed; p99 in ms while it is {times}; {len(refused)} tries of a callback"
    )
