"""What becomes of bulk runs whose processes are interrupted or killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.bulk import SHADES, rows_of, samples, score_in_bulk, write_table

pytestmark = pytest.mark.slow

ENTRIES = samples(30)


def command(source: Path, output: Path, bundles: Path, *more: str) -> list[str]:
    flags = ["--models", str(bundles), "--model", "simulated", "--input", str(source), "--output", str(output)]
    return [sys.executable, "-m", "critiq.cli", "bulk", *flags, "--checkpoint", "4", "--batch", "4", *more]


@contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for_parts(output: Path, count: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while len(list(output.glob("part-*.parquet"))) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.01)


def reds(output: Path) -> list[float]:
    return [row["red_raw"] for row in rows_of(output)]


EXPECTED = [float(number * SHADES % 256) for number in range(30)]


def test_killed_at_any_point_each_row_is_there_once(tmp_path: Path, bundles: Path) -> None:
    source, output = write_table(tmp_path / "in.parquet", ENTRIES), tmp_path / "out"
    for parts, more in ((1, ()), (4, ("--workers", "2"))):
        with started(command(source, output, bundles, *more)) as process:
            wait_for_parts(output, parts, process)
            children = psutil.Process(process.pid).children()
            process.send_signal(signal.SIGKILL)
            process.wait()
            # Its workers do not outlive it.
            _, alive = psutil.wait_procs(children, timeout=60)
            assert not alive
        assert not (output / "_SUCCESS").exists()
    written = {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}
    lines = "".join(path.read_text() for path in (output / "_critiq").glob("done-*")).splitlines()
    kept = {f"part-{json.loads(line)['unit']:06d}.parquet" for line in lines}
    assert kept
    assert score_in_bulk(
        source, output, bundles, default="simulated", checkpoint=4, batch=4, model="simulated"
    ).finished
    assert reds(output) == EXPECTED
    assert {name: (output / name).stat().st_mtime_ns for name in kept} == {name: written[name] for name in kept}


def test_an_interrupt_lets_parts_end_and_says_how_to_go_on(tmp_path: Path, bundles: Path) -> None:
    source, output = write_table(tmp_path / "in.parquet", ENTRIES), tmp_path / "out"
    with started(command(source, output, bundles, "--workers", "2")) as process:
        wait_for_parts(output, 1, process)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=120)[1]
        assert process.returncode == 130
    assert "rows are done" in told
    assert "to go on: critiq bulk --models" in told
    done = len(rows_of(output))
    assert 4 <= done < 30
    assert not list((output / "_critiq" / "writing").iterdir())
    outcome = score_in_bulk(source, output, bundles, default="simulated", checkpoint=4, model="simulated")
    assert outcome.rows == 30
    assert reds(output) == EXPECTED


def test_a_worker_that_dies_is_replaced(tmp_path: Path, bundles: Path) -> None:
    source, output = write_table(tmp_path / "in.parquet", ENTRIES), tmp_path / "out"
    with started(command(source, output, bundles, "--workers", "2")) as process:
        wait_for_parts(output, 1, process)
        psutil.Process(process.pid).children()[0].kill()
        told = process.communicate(timeout=60)[1]
    assert process.returncode == 0, told
    assert "30 rows scored, 0 failed" in told
    assert reds(output) == EXPECTED
