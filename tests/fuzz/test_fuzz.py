"""Every target with its seeds, with what was found before, and for a moment with what the fuzzer thinks of."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

FOUND = Path(__file__).parent / "found"


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_what_was_found(name: str) -> None:
    target = TARGETS[name]
    for path in sorted((FOUND / name).glob("*")):
        target.run(path.read_bytes())
    for seed in target.seeds():
        target.run(seed)
        for cut in range(0, len(seed), max(1, len(seed) // 20)):
            target.run(seed[:cut])
            target.run(seed[:cut] + bytes([seed[cut] ^ 0xFF]) + seed[cut + 1 :])


@pytest.mark.slow
@pytest.mark.reliability
@pytest.mark.parametrize("name", ["headers", "open_inference", "pickles"])
def test_for_a_moment(name: str, tmp_path: Path) -> None:
    """Those that strangers reach first; the others cost as much to start, and are run by hand for longer."""
    if importlib.util.find_spec("atheris") is None:
        pytest.skip("atheris is not installed (pip install atheris; Linux and macOS)")
    command = [sys.executable, "-m", "tests.fuzz.run", "--seconds", "1", "--keep", str(tmp_path), name]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}  # the fuzzer leaves without tidying up
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    runs = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert runs, done.stderr[-3000:]
    assert int(runs[1]) > len(TARGETS[name].seeds())
