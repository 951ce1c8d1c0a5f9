"""Families without fixtures of the authors' code, at their published sizes: exported through the gates, and loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.checkpoints import MAKERS
from critiq_exporters.cli import main
from critiq_server.bundles.model import load_model
from critiq_server.runtime.onnx import RuntimeSettings

OPTIONS = {"eliq": ["--lmm-revision", "0" * 64]}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("family", ["nima", "eliq", "imagereward", "clipscore"])
def test_a_checkpoint_of_the_published_size_exports_and_loads(family: str, tmp_path: Path) -> None:
    checkpoint = MAKERS[family](tmp_path / "checkpoint")
    given = checkpoint if checkpoint.is_dir() or family in ("nima", "eliq") else checkpoint.parent
    command = [family, "--checkpoint", str(given), "--out", str(tmp_path / "models"), "--version", "1", "--count", "4"]
    assert main([*command, "--max-batch", "2", *OPTIONS.get(family, [])]) == 0
    model = load_model(tmp_path / "models" / family / "1", RuntimeSettings())
    assert model.manifest.family == family
