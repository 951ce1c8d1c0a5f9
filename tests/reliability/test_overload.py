"""Three times as many requests as the server can answer, from callers who do not wait for each other."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from tests.reliability.load import FULL, callers, codes, open_loop, percentile, under_load
from tests.support.bundles import write_simulated
from tests.support.servers import server_process

pytestmark = pytest.mark.reliability

BATCH_SECONDS, BATCH, LIMIT = 0.4, 8, 32
"""The stage sleeps while it computes: what is measured is the server, whatever else the machine's cores do."""
SECONDS = 60 if FULL else 4


@pytest.mark.slow
@pytest.mark.parametrize("face", ["over_grpc", "over_rest"] if FULL else ["over_both"])
async def test_overload(tmp_path: Path, face: str) -> None:
    write_simulated(tmp_path, batch_ms=1000 * BATCH_SECONDS, item_ms=0, max_batch=BATCH)
    arguments = ["--models", str(tmp_path), "--default", "simulated", "--load", "simulated"]
    arguments += ["--set", f"limits.in_flight={LIMIT}", "--set", f"limits.batch_items={LIMIT}"]
    with server_process(arguments, tmp_path / "log") as server:
        async with callers(server, float) as asked:
            ask = getattr(asked, face)
            started = time.monotonic()
            async with under_load(ask, 2 * BATCH) as alone:
                await asyncio.sleep(10 if FULL else 2)
            capacity = len(alone) / (time.monotonic() - started)
            assert codes(alone).keys() == {"OK"}

            started = time.monotonic()
            outcomes = await open_loop(ask, 3 * capacity, SECONDS, first=10**5)
            elapsed = time.monotonic() - started
            answered, refused = codes(outcomes)["OK"], codes(outcomes)["TOO_BUSY"]
            assert answered + refused == len(outcomes), codes(outcomes)
            goodput = answered / elapsed
            assert goodput >= 0.9 * capacity
            # Whoever is let in waits for those before him, and no longer; the rest is the noise of a shared machine.
            bound = LIMIT / BATCH * BATCH_SECONDS
            accepted, turned_away = (percentile(outcomes, 0.99, code) for code in ("OK", "TOO_BUSY"))
            assert accepted < 2 * bound + 0.5
            assert all(entry.hint for entry in outcomes if entry.code == "TOO_BUSY")
            # And at once afterwards it is as if nothing had been.
            after = [await ask(2 * 10**5 + number) for number in range(5)]
            assert codes(after).keys() == {"OK"}
            assert max(entry.seconds for entry in after) < BATCH_SECONDS + 1
            assert "\ncritiq_in_flight 0.0\n" in (await asked.http.get(server.metrics)).text
        assert await asyncio.to_thread(server.terminate) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
    print(
        f"overload ({face}): capacity {capacity:.1f}/s, offered {len(outcomes) / SECONDS:.0f}/s for {SECONDS} s: "
        f"goodput {goodput:.1f}/s ({goodput / capacity:.2f} of capacity), {refused} refused, each with a hint; "
        f"p99 of accepted {accepted:.2f} s (bound {bound:.1f} s), of refused {1000 * turned_away:.0f} ms; afterwards "
        f"{1000 * max(entry.seconds for entry in after):.0f} ms"
    )
