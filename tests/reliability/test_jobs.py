"""SIGKILL and SIGTERM while jobs run, callbacks are pending and others ask: what was accepted is done and told of."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from collections import defaultdict
from pathlib import Path

import pytest

import critiq
from tests.reliability.load import FULL, callers, codes, under_load
from tests.support.bundles import write_simulated
from tests.support.https import answer
from tests.support.receiver import receiving
from tests.support.requests import flat
from tests.support.servers import server_process
from tests.support.waiting import until

pytestmark = pytest.mark.reliability

ITEMS = 6
ROUNDS = 5 if FULL else 1
DRAIN = 10


class Customer:
    """Submits jobs, each with a key; knows which were accepted, and which it must ask for again."""

    def __init__(self, callback: str) -> None:
        self.accepted: dict[str, str] = {}
        self.unknown: list[str] = []
        self._callback = callback
        self._count = 0

    async def submit(self, server: str, key: str = "") -> None:
        if not key:
            self._count += 1
            key = f"job {self._count}"
        items = [critiq.Item(flat(level)) for level in range(ITEMS)]
        try:
            async with critiq.AsyncClient(server, retries=0) as client:
                job = await client.submit_job(items, callback=self._callback, key=key)
        except critiq.Unavailable:
            self.unknown.append(key)
        else:
            assert self.accepted.setdefault(key, job.id) == job.id

    async def submit_all_along(self, server: str) -> None:
        while True:
            await self.submit(server)
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_killed_and_stopped_with_callbacks_pending(tmp_path: Path) -> None:
    write_simulated(tmp_path / "bundles", batch_ms=40, item_ms=0, max_batch=4)
    async with receiving() as receiver:
        arguments = ["--models", str(tmp_path / "bundles"), "--load", "simulated", "--default", "simulated"]
        arguments += ["--set", f"jobs.path={tmp_path / 'jobs.db'}", "--set", f"server.drain_seconds={DRAIN}"]
        arguments += ["--set", f"jobs.callbacks={json.dumps(receiver.settings())}"]
        customer = Customer(receiver.url)
        stops, drained = [signal.SIGKILL, signal.SIGTERM] * ROUNDS, []
        for number, stop in enumerate(stops):
            receiver.replies[:] = [answer(503)] * 1000  # nobody takes callbacks: all of them stay pending
            with server_process(arguments, tmp_path / f"{number}.log") as server:
                async with callers(server, float) as asked, under_load(asked.over_both, 4) as outcomes:
                    for key in list(customer.unknown):
                        customer.unknown.remove(key)
                        await customer.submit(server.rest, key)
                    submitting = asyncio.ensure_future(customer.submit_all_along(server.rest))
                    await asyncio.sleep(6 if FULL else 1.5)
                    stopped = time.monotonic()
                    server.process.send_signal(stop)
                    status = await asyncio.to_thread(server.process.wait, DRAIN + 20)
                    took = time.monotonic() - stopped
                    submitting.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await submitting
                if stop is signal.SIGTERM:
                    assert status == 0
                    assert took < DRAIN
                    drained.append(took)
                    # What had been accepted was answered; what came later was refused in words, or not connected.
                    early = [entry for entry in outcomes if entry.at < stopped - 0.3]
                    assert codes(early).keys() == {"OK"}, codes(early)
                    assert codes(outcomes).keys() <= {"OK", "STOPPING", "UNAVAILABLE", "LOST"}, codes(outcomes)
        receiver.replies.clear()
        receiver.events.clear()
        with server_process(arguments, tmp_path / "last.log") as server:
            async with critiq.AsyncClient(server.rest) as client:
                for key in customer.unknown:
                    await customer.submit(server.rest, key)
                names = set(customer.accepted.values())
                assert len(names) == len(customer.accepted) > 5 * len(stops)
                for name in names:
                    job = await client.wait_job(name, timeout=120)
                    assert (job.state, job.answered, job.failed) == ("done", ITEMS, 0)
                    levels = [entry.result["red"].raw for entry in await client.job_results(name) if entry.result]
                    assert levels == list(range(ITEMS))
                await until(lambda: {event["data"]["id"] for _, event in receiver.events} >= names, 60)
            messages = defaultdict(set)
            for message, event in receiver.events:
                messages[event["data"]["id"]].add(message)
            assert all(len(ids) == 1 for ids in messages.values()), "a message keeps its id"
            assert await asyncio.to_thread(server.terminate) == 0
    print(
        f"jobs: {len(names)} accepted over {len(stops)} stops (SIGKILL and SIGTERM in turn), all done with right "
        f"results, all told of ({len(receiver.events)} deliveries after the last start); SIGTERM took at most "
        f"{max(drained):.1f} s"
    )


@pytest.mark.slow
async def test_a_second_signal_loses_no_job(tmp_path: Path) -> None:
    def arguments(batch_ms: float) -> list[str]:
        write_simulated(bundles := tmp_path / f"batches of {batch_ms} ms", batch_ms=batch_ms, max_batch=2)
        model = ["--models", str(bundles), "--load", "simulated", "--default", "simulated"]
        return [*model, "--set", f"jobs.path={tmp_path / 'jobs.db'}"]

    log = tmp_path / "first.log"
    with server_process(arguments(60_000), log) as server:
        async with critiq.AsyncClient(server.rest) as client:
            job = await client.submit_job([flat(level) for level in range(4)])
            waiting = asyncio.ensure_future(client.score(flat(9)))
            await asyncio.sleep(0.5)
            server.process.send_signal(signal.SIGTERM)
            await until(lambda: '"stopping"' in log.read_text())
            await asyncio.sleep(1)  # sooner it would count as the same signal
            server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(server.process.wait, 20) != 0, "not everything was answered"
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
    with server_process(arguments(10), tmp_path / "second.log") as server:
        async with critiq.AsyncClient(server.rest) as client:
            assert (await client.wait_job(job.id, timeout=60)).failed == 0
