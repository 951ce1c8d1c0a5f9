"""The committed stubs are current, and the check for breaking changes finds what breaks callers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tools import contract


def test_stubs_are_current_and_contract_is_compatible() -> None:
    assert contract.stale_stubs() == []
    recorded = contract.FileDescriptorSet.FromString(contract.RECORD.read_bytes())
    assert contract.breaking_changes(recorded, contract.describe()) == []


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("string prompt = 2;", "", "ScoreRequest.prompt"),
        ("string prompt = 2;", "string text = 2;", "another name"),
        ("string prompt = 2;", "bytes prompt = 2;", "another name or type"),
        ("double raw = 2;", "double raw = 12;", "Score.raw"),
        ("PRIORITY_BULK = 2;", "PRIORITY_BULK = 3;", "PRIORITY_BULK"),
        ("rpc Rank(RankRequest) returns (RankResponse);", "", "method critiq.v1.Scoring.Rank"),
        ("rpc ScoreStream(stream ScoreItem)", "rpc ScoreStream(ScoreItem)", "ScoreStream"),
    ],
)
def test_breaking_changes_are_found(tmp_path: Path, old: str, new: str, problem: str) -> None:
    changed = _copy_with(tmp_path, old, new)
    problems = contract.breaking_changes(contract.describe(), contract.describe(changed))
    assert any(problem in entry for entry in problems), problems


def test_additions_are_compatible(tmp_path: Path) -> None:
    changed = _copy_with(tmp_path, "  string prompt = 2;\n", "  string prompt = 2;\n  string note = 99;\n")
    assert contract.breaking_changes(contract.describe(), contract.describe(changed)) == []


def _copy_with(tmp_path: Path, old: str, new: str) -> Path:
    target = tmp_path / "proto"
    shutil.copytree(contract.PROTO, target)
    path = target / "critiq" / "v1" / "scoring.proto"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return target
