"""Bulk scoring by actors of a real Ray on loopback."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest

from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.ledger import STOP
from critiq_server.bulk.ray_engine import run_ray
from critiq_server.bulk.run import Options, Stop, run
from critiq_server.bulk.units import Plan
from tests.support.bulk import rows_of, samples, score_in_bulk, write_folder, write_table
from tests.support.servers import make_settings

pytestmark = pytest.mark.slow

ENTRIES = samples(40)


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    import ray

    # A folder of its own, or others on this machine would take this Ray for theirs; short, as sockets lie there.
    with tempfile.TemporaryDirectory(prefix="ray-") as folder:
        start = partial(
            ray.init,
            "local",
            num_cpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=100 * 2**20,
            _temp_dir=folder,
        )
        try:
            start()
        except Exception:  # Ray waits half a minute for itself, which a busy machine may need; no setting changes that
            ray.shutdown()
            start()
        yield
        ray.shutdown()


def test_actors_write_what_one_process_writes(tmp_path: Path, bundles: Path) -> None:
    source = write_folder(tmp_path / "in", ENTRIES)
    (source / "bad.png").write_bytes(b"x")
    here = score_in_bulk(source, tmp_path / "here", bundles)
    there = score_in_bulk(source, tmp_path / "there", bundles, engine="ray", workers=2)
    assert (there.finished, there.rows, there.failed) == (True, 41, {"INVALID_ARGUMENT": 1})
    assert (here.rows, here.failed) == (there.rows, there.failed)
    assert rows_of(tmp_path / "there") == rows_of(tmp_path / "here")


def test_a_stop_and_the_death_of_an_actor_cost_no_row(tmp_path: Path, bundles: Path) -> None:
    """A run is stopped on Ray, goes on there while an actor is killed, and each row is there once."""
    source, output = write_table(tmp_path / "in.parquet", ENTRIES), tmp_path / "out"
    asked = {"default": "simulated", "model": "simulated", "checkpoint": 2, "batch": 2, "engine": "ray", "workers": 2}
    settings = make_settings(bundles, default="simulated")
    options = Options(str(source), str(output), "ray", "simulated", checkpoint=2, batch=2, workers=2)
    reported: list[int] = []

    def stop_soon(rows: int, failed: int) -> None:
        reported.append(rows)
        if len(reported) == 2:
            signal.raise_signal(signal.SIGINT)

    stopped = run(options, settings, lambda plan, units, rows: None, stop_soon)
    assert not stopped.finished
    assert 4 <= stopped.rows < 40
    assert (output / STOP).exists()

    killed: list[int] = []

    def kill_one(plan: Plan, units: int, rows: int) -> None:
        assert rows == stopped.rows
        threading.Thread(target=_kill_an_actor, args=(output, killed), daemon=True).start()

    went_on = run(options, settings, kill_one, lambda rows, failed: None)
    assert killed
    assert (went_on.finished, went_on.rows) == (True, 40)
    assert [row["id"] for row in rows_of(output)] == [entry.name for entry in ENTRIES]
    assert score_in_bulk(source, output, bundles, **{**asked, "engine": "local"}).before


def _kill_an_actor(output: Path, killed: list[int]) -> None:
    """Once the run that goes on has written a part, so that its actors are at work."""
    there = len(list(output.glob("part-*")))
    while len(list(output.glob("part-*"))) == there:
        time.sleep(0.01)
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::MapWorker"):
            process.kill()
            killed.append(process.pid)
            return


def test_what_ray_does_not_have_is_not_waited_for(tmp_path: Path, bundles: Path) -> None:
    source = write_folder(tmp_path / "in", ENTRIES[:2])
    with pytest.raises(BulkError, match=r"3 workers with 1 CPUs each need 3, and Ray has 2; lower --workers or --cpus"):
        score_in_bulk(source, tmp_path / "out", bundles, engine="ray", workers=3)
    with pytest.raises(BulkError, match=r"1 workers with 0.5 GPUs each need 0.5, and Ray has 0"):
        score_in_bulk(source, tmp_path / "out", bundles, engine="ray", gpus=0.5)
    outcome = score_in_bulk(source, tmp_path / "out", bundles)
    assert outcome.finished


def test_without_ray_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(BulkError, match=r"pip install 'critiq\[ray\]'"):
        run_ray(None, [], lambda done: None, Stop(lambda: None), 1, 1.0, 0.0)  # type: ignore[arg-type]
