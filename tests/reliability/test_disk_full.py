"""The disk fills up while requests come in, and is emptied again.

A limit on the size of the server's files (``RLIMIT_FSIZE``) stands for the full disk: it needs no rights, holds for
all that the server writes (features, jobs, drift, its log), and can be lifted again.
"""

from __future__ import annotations

import asyncio
import json
import resource
import time
from pathlib import Path

import pytest

import critiq
from tests.reliability.load import FULL, callers, codes, percentile, under_load
from tests.support.bundles import write_bundle
from tests.support.requests import flat
from tests.support.servers import server_process

pytestmark = pytest.mark.reliability
PHASE = 15 if FULL else 1.0
UNLIMITED = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)


@pytest.mark.slow
async def test_a_full_disk_is_nobodys_error_but_the_jobs(tmp_path: Path) -> None:
    write_bundle(tmp_path / "models")
    arguments = ["--models", str(tmp_path / "models"), "--default", "tiny", "--load", "tiny"]
    features = {"also": ["tiny/image_encoder"], "disk": {"path": str(tmp_path / "features")}}
    arguments += ["--set", f"features={json.dumps(features)}", "--set", f"jobs.path={tmp_path / 'jobs.db'}"]
    drift = {"directory": str(tmp_path / "drift"), "check_seconds": 0.2}
    arguments += ["--set", f"drift={json.dumps(drift)}", "--set", "log.access=true", "--set", "engine.store_mb=1"]
    with server_process(arguments, tmp_path / "log") as server:
        pid = server.process.pid
        async with (
            callers(server, lambda level: level / 255) as asked,
            critiq.AsyncClient(server.rest, retries=0) as client,
        ):
            async with under_load(asked.over_both, 4) as outcomes:
                await asyncio.sleep(PHASE)
                before = await client.submit_job([flat(1)])
                assert (await client.wait_job(before.id, timeout=120)).failed == 0
                smallest = min(path.stat().st_size for path in (tmp_path / "jobs.db", tmp_path / "log"))
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (min(4096, smallest), resource.RLIM_INFINITY))
                full = time.monotonic()
                await asyncio.sleep(PHASE)
                for _ in range(10):
                    with pytest.raises(critiq.Unavailable, match="the jobs cannot be used now"):
                        await client.submit_job([flat(2)] * 3)
                assert (await client.job(before.id)).state == "done", "what is there can be read"
                assert (await asked.http.get("/readyz")).status_code == 200
                metrics = (await asked.http.get(server.metrics)).text
                assert 'critiq_feature_writes_total{outcome="error",tier="disk"}' in metrics
                log_while_full = (tmp_path / "log").stat().st_size
                resource.prlimit(pid, resource.RLIMIT_FSIZE, UNLIMITED)
                room = time.monotonic()
                job = await client.submit_job([flat(3)])
                assert (await client.wait_job(job.id, timeout=120)).failed == 0
                while (tmp_path / "log").stat().st_size == log_while_full:
                    assert time.monotonic() - room < 20, "it writes its log again"
                    await asyncio.sleep(0.05)
                await asyncio.sleep(PHASE)
            assert codes(outcomes).keys() == {"OK"}, codes(outcomes)
        assert await asyncio.to_thread(server.terminate) == 0
    while_full = [entry for entry in outcomes if full < entry.at < room]
    # What was on disk is whole: another server finds it.
    with server_process(arguments, tmp_path / "second.log") as server:
        async with critiq.AsyncClient(server.rest) as client:
            assert (await client.job(before.id)).state == "done"
            assert (await client.job(job.id)).state == "done"
    print(
        f"disk full: {len(outcomes)} scored, {len(while_full)} of them while it was full (p99 "
        f"{1000 * percentile(while_full, 0.99):.0f} ms), none failed; jobs refused with UNAVAILABLE, taken again after"
    )
