"""Families without fixtures of the authors' code, at their published sizes: exported through the gates.

The last gate loads the bundle as the server does. CLIPScore's is beside what else is said of it.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.checkpoints import MAKERS
from critiq_server.bundles.model import read_manifest

OPTIONS = {"eliq": ["--lmm-revision", "0" * 64]}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ["nima", "eliq", "imagereward"])
def test_a_checkpoint_of_the_published_size_passes_the_gates(family: str, tmp_path: Path) -> None:
    checkpoint = MAKERS[family](tmp_path / "checkpoint")
    given = checkpoint if checkpoint.is_dir() or family in ("nima", "eliq") else checkpoint.parent
    command = [sys.executable, "-m", "critiq_exporters.cli", family, "--checkpoint", str(given), "--version", "1"]
    command += ["--out", str(tmp_path / "models"), "--count", "4", "--max-batch", "2", *OPTIONS.get(family, [])]
    # In a process of its own: up to 8 GB, which this one would keep.
    done = subprocess.run(command, capture_output=True, text=True, timeout=800, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    assert read_manifest(tmp_path / "models" / family / "1").family == family
