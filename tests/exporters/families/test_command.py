"""`critiq export` from the command line: what it prints, what it refuses, how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from critiq_exporters.cli import main
from critiq_exporters.core.cards import table
from critiq_exporters.families import FAMILIES
from critiq_server.bundles.model import read_manifest
from tests.exporters.families.conftest import LOOSE, Exported
from tests.exporters.families.rule_made import tiny_state

CARDS = [family.card for family in FAMILIES.values()]


def refused(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 2) -> str:
    assert main(arguments) == status
    return capsys.readouterr().err


def test_export_tells_its_gates_and_hides_where_files_lay(tiny_export: Exported) -> None:
    place = tiny_export.models / "my-maniqa" / "7"
    assert "stage tower, batch 3, against torch" in tiny_export.printed
    assert f"fp32: {place}" in tiny_export.printed
    manifest = read_manifest(place)
    assert (manifest.name, manifest.version, manifest.family) == ("my-maniqa", "7", "maniqa")
    assert str(tiny_export.models.parent) not in manifest.model_dump_json()


def test_verify_repeats_the_gates(
    tiny_export: Exported, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full, int8 = (str(tiny_export.models / name / "7") for name in ("my-maniqa", "my-maniqa-int8"))
    assert main(["verify", int8, "--reference", full, "--count", "6", *LOOSE]) == 0
    assert "largest move" in capsys.readouterr().out
    assert main(["verify", full, "--checkpoint", str(tiny_export.checkpoint), "--count", "4"]) == 0
    assert "against torch" in capsys.readouterr().out
    torch.save(tiny_state() | {"conv2.bias": torch.ones(16)}, tiny_checkpoint)
    assert main(["verify", full, "--checkpoint", str(tiny_checkpoint), "--count", "4"]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_bad_input_is_one_message_and_leaves_nothing(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["--checkpoint", str(tiny_checkpoint), "--out", str(out)]
    assert "no family is called 'maniqua'; known are maniqa" in refused(capsys, "maniqua", *flags)
    assert "'fp8' is none of" in refused(capsys, "maniqa", *flags, "--precision", "fp32,fp8").replace(
        "fp8 is", "'fp8' is"
    )
    assert "'whole', 'five_crops'" in refused(capsys, "maniqa", *flags, "--evaluation", "ten")
    assert "holds no pictures" in refused(capsys, "maniqa", *flags, "--pictures", str(tmp_path))
    missing = str(tmp_path / "IIGROUP" / "MANIQA")
    assert "does not exist; pass a local checkpoint" in refused(
        capsys, "maniqa", "--checkpoint", missing, "--out", str(out)
    )
    torch.save({"weight": torch.zeros(1)}, tiny_checkpoint)
    assert "the checkpoint does not fit:\n  missing:" in refused(capsys, "maniqa", *flags)
    assert not out.exists()


def test_families_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["families"]) == 0
    assert capsys.readouterr().out == table(CARDS) + "\n"


def test_every_family_has_a_card_and_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    for family in FAMILIES:
        assert main([family, "--help"]) == 0
        assert "--checkpoint" in capsys.readouterr().out


def test_the_pages_hold_the_tables() -> None:
    root = Path(__file__).parents[3]
    for page, short in (("docs/models/families.md", False), ("README.md", True)):
        told = "critiq export families --short" if short else "critiq export families"
        assert table(CARDS, short) in (root / page).read_text("utf-8"), f"put what `{told}` prints into {page}"
