"""Checkpoints and bundles that several tests share."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from critiq_exporters.cli import main
from tests.exporters.families.rule_made import tiny_state

LOOSE = ["--max-shift", "0.5", "--min-srcc", "0.5"]
"""Limits for a reduced precision on six pictures, which tell little."""


@pytest.fixture
def tiny_checkpoint(tmp_path: Path) -> Path:
    """A small MANIQA checkpoint in the published layout."""
    path = tmp_path / "tiny.pt"
    torch.save(tiny_state(), path)
    return path


@dataclass(frozen=True)
class Exported:
    """What `critiq export maniqa` made of a tiny checkpoint: the model ``my-maniqa``, version 7, in fp32 and int8."""

    checkpoint: Path
    models: Path
    printed: str


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("tiny")
    checkpoint, models = folder / "tiny.pt", folder / "models"
    torch.save(tiny_state(), checkpoint)
    command = ["maniqa", "--checkpoint", str(checkpoint), "--out", str(models), "--version", "7", "--name", "my-maniqa"]
    command += ["--precision", "fp32,int8", "--count", "6", "--max-batch", "3", *LOOSE]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(command) == 0
    return Exported(checkpoint, models, printed.getvalue())
