"""Taking one side of a finished bundle over into another."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import critiq_server.bundles
from critiq_exporters.training.bundle import copied_parts
from critiq_exporters.training.cli import app

SHIPPED = Path(critiq_server.bundles.__file__).parent / "builtin"


def test_the_alignment_side_comes_with_its_stages_graphs_and_tokenizer(tmp_path: Path) -> None:
    parts = copied_parts(SHIPPED, tmp_path, "alignment")
    assert [item.name for item in parts.dimensions] == ["alignment"]
    assert {stage.name for stage in parts.stages} == {"alignment_encoder", "text_encoder", "alignment_head"}
    wanted = {stage.graph for stage in parts.stages} | {item.file for item in parts.tokenizers.values()}
    assert {path.name for path in tmp_path.iterdir()} == wanted
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (SHIPPED / path.name).read_bytes()


def test_a_dimension_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no dimension 'beauty'.*visual_quality"):
        copied_parts(SHIPPED, tmp_path, "beauty")


def test_contradicting_flags_are_refused(tmp_path: Path) -> None:
    arguments = ["builtin", "--out", str(tmp_path / "b"), "--data", str(tmp_path), "--visual-only"]
    result = CliRunner().invoke(app, [*arguments, "--alignment-from", str(SHIPPED)])
    assert result.exit_code != 0
    assert "--visual-only" in result.output
