"""``critiq policy``: policies checked and tried before a server decides by them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from critiq import types
from critiq.cli.ledger import Ledger, row_of
from critiq.cli.tables import print_json, score_json
from critiq.errors import FeaturesMissing, InvalidArgument
from critiq_server.policy_cli import main
from tests.support.bundles import write_bundle

GATE = """
name: gate
version: {version}
model: tiny
rules:
  - name: dark
    when: {{dimension: brightness, below: {below}}}
    decision: reject
  - name: wordy
    when: {{dimension: wordiness, scale: raw, above: 2}}
    decision: review
  - name: cut
    when: {{flag: prompt_truncated}}
    decision: review
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.chdir(tmp_path)
    for name, below in (("old", 0.2), ("new", 0.5)):
        (tmp_path / f"{name}.yaml").write_text(GATE.format(version=name, below=below))

    def run(*arguments: str, code: int = 0) -> tuple[str, str]:
        status = main(arguments)
        out, err = capsys.readouterr()
        assert status == code, (out, err)
        return out, err

    return run


def score(dimension: str, value: float, **changes: Any) -> types.Score:
    plain: dict[str, Any] = {
        "dimension": dimension,
        "raw": 16 * value if dimension == "wordiness" else value,
        "calibrated": value,
        "percentile": 100 * value,
        "direction": "higher_is_better",
        "scope": "absolute",
        "model": "tiny",
        "model_version": "1",
        "from_store": False,
    }
    return types.Score(**plain | changes)


def outcome(brightness: float, wordiness: float | None, *, cut: bool = False) -> types.ItemResult:
    scores = (score("brightness", brightness), *([score("wordiness", wordiness)] if wordiness is not None else []))
    prompt = types.PromptReport(9, 4, cut) if wordiness is not None else None
    return types.ItemResult("", result=types.ScoreResult(scores, types.ImageReport("PNG", 8, 8), prompt))


RECORDED = {
    "a.png": outcome(0.9, 0.1),
    "b.png": outcome(0.4, 0.1),
    "c.png": outcome(0.1, 0.1),
    "d.png": outcome(0.3, 0.2),
    "e.png": outcome(0.9, 0.1, cut=True),
    "f.png": outcome(0.9, None),
    "g.png": types.ItemResult("", error=FeaturesMissing("nobody has them")),
    "h.png": types.ItemResult("", error=InvalidArgument("no picture", field="image.encoded")),
}


@pytest.fixture(params=["--output", "--json"])
def recording(request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """What ``critiq score`` writes about some pictures, by the code that writes it."""
    path = tmp_path / "scores.jsonl"
    if request.param == "--output":
        ledger = Ledger(path)
        for file, result in RECORDED.items():
            ledger.add(row_of(file, "a cat", result))
        ledger.finish(RECORDED)
        return path
    for file, found in RECORDED.items():
        if found.result is not None:
            print_json(score_json(file, "a cat", found.result))
        else:
            print_json({"file": file, "prompt": "a cat", "error": found.error})
    path.write_text(capsys.readouterr().out)
    return path


def test_a_policy_is_tried_on_both_recordings(run: Any, recording: Path) -> None:
    out, err = run("try", "new.yaml", "--scores", str(recording), "--against", "old.yaml", "--json")
    found = json.loads(out)
    assert (found["pictures"], found["failed"]) == (8, 1)
    # a accept, b c d reject (d speaks wordy too), e f g review.
    assert found["new"]["decisions"] == {"accept": 1, "review": 3, "reject": 3}
    assert found["old"]["decisions"] == {"accept": 2, "review": 4, "reject": 1}
    assert (found["new"]["missing"], found["new"]["default"]) == (2, 1)
    assert [(rule["rule"], rule["spoke"], rule["decided"]) for rule in found["new"]["rules"]] == [
        ("dark", 3, 3),
        ("wordy", 1, 0),
        ("cut", 1, 1),
    ]
    assert found["new"]["rules"][0]["share"] == pytest.approx(3 / 7)
    assert [(change["from"], change["to"], change["pictures"]) for change in found["changes"]] == [
        ("review", "reject", 1),
        ("accept", "reject", 1),
    ]
    (example,) = found["changes"][1]["examples"]
    assert example == {"file": "b.png", "reasons": ["brightness (calibrated) 0.4 is below 0.5"]}
    assert [note for note in found["notes"] if "have no score of wordiness" in note] == [
        "2 of 7 pictures have no score of wordiness; each counts as missing"
    ]
    assert err == ""


def test_tables_tell_the_same(run: Any, recording: Path) -> None:
    out, err = run("try", "new.yaml", "--scores", str(recording), "--against", "old.yaml", "--examples", "1")
    assert "8 pictures, 1 failed" in out
    assert "3 (42.9%)" in out
    assert "2 pictures change" in out
    assert "b.png: brightness (calibrated) 0.4 is below 0.5" in out
    assert "2 of 7 pictures have no score of wordiness" in err
    alone, _ = run("try", "new.yaml", "--scores", str(recording))
    assert "change" not in alone


def test_a_flag_that_is_not_recorded_is_told(run: Any, tmp_path: Path) -> None:
    (tmp_path / "flags.yaml").write_text(
        "{name: flags, version: 1, rules: [{name: f, when: {flag: degraded}, decision: reject}]}"
    )
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps(row_of("a.png", "", RECORDED["a.png"])) + "\n\n")
    out, _ = run("try", "flags.yaml", "--scores", str(path), "--json")
    assert json.loads(out)["notes"][0].startswith("1 of 1 pictures do not tell the flag degraded")
    degraded = types.ScoreResult(
        (score("brightness", 0.9, degraded=True, degraded_reason="no features"),), types.ImageReport("PNG", 8, 8)
    )
    path.write_text(json.dumps(score_json("a.png", "", degraded)) + "\n")
    found = json.loads(run("try", "flags.yaml", "--scores", str(path), "--json")[0])
    assert (found["new"]["decisions"]["reject"], found["notes"]) == (1, [])


def test_scores_of_another_model_are_told(run: Any, tmp_path: Path) -> None:
    (tmp_path / "other.yaml").write_text(GATE.format(version=1, below=0.5).replace("tiny", "huge"))
    path = tmp_path / "scores.jsonl"
    path.write_text(json.dumps(row_of("a.png", "a cat", RECORDED["a.png"])))
    _, err = run("try", "other.yaml", "--scores", str(path))
    assert "1 pictures were scored by tiny 1, and the policy is about huge" in err


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "there are no pictures in it"),
        ("{", "line 1: no JSON"),
        ("[]", "line 1: not of `critiq score`"),
        ('{"file": 3}', "line 1: not of `critiq score`"),
        ('{"file": "a", "x_raw": "much"}', "line 1: not of `critiq score`: ValueError"),
        ('{"file": "a", "scores": {"x": {}}, "image": {}}', "line 1: not of `critiq score`: KeyError 'raw'"),
        ('{"file": "a", "scores": {}, "image": {"colour": 1}}', "line 1: not of `critiq score`: TypeError"),
        ("file,prompt\na.png,", "line 1: no JSON"),
    ],
)
def test_recordings_that_cannot_be_used(run: Any, tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(text)
    out, err = run("try", "new.yaml", "--scores", str(path), code=2)
    assert out == ""
    assert err.startswith(f"critiq policy: {path}")
    assert told in err


def test_policies_are_checked_against_bundles(run: Any, tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundles")
    out, _ = run("check", "new.yaml", "old.yaml", "--models", "bundles")
    assert out.splitlines() == [
        "new.yaml: gate new: 3 rules over brightness, wordiness; fits tiny 1",
        "old.yaml: gate old: 3 rules over brightness, wordiness; fits tiny 1",
    ]
    assert "its model tiny is not here" in run("check", "new.yaml")[0]
    (tmp_path / "typo.yaml").write_text(GATE.format(version=1, below=0.5).replace("brightness", "brigthness"))
    (tmp_path / "wrong.yaml").write_text(GATE.format(version=1, below=5))
    out, err = run("check", ".", "--models", "bundles", code=2)
    assert len(out.splitlines()) == 2
    assert "critiq policy: typo.yaml: the policy 'gate' version '1' compares 'brigthness', and the model 'tiny'" in err
    assert "critiq policy: wrong.yaml: rules[0] 'dark', when: below 5 is outside the calibrated scale, 0..1" in err


def test_checks_as_json(run: Any, tmp_path: Path) -> None:
    (tmp_path / "wrong.yaml").write_text(GATE.format(version=1, below=5))
    out, _ = run("check", "new.yaml", "wrong.yaml", "--json", code=2)
    good, bad = map(json.loads, out.splitlines())
    assert (good["policy"], good["version"], good["dimensions"]) == ("gate", "new", ["brightness", "wordiness"])
    assert good["problem"] is None
    assert "outside the calibrated scale" in bad["problem"]


def test_the_built_in_model_is_known(run: Any, tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text(
        "{name: own, version: 1, rules: [{name: q, when: {dimension: visual_quality, below: 0.3}, decision: review}]}"
    )
    assert "fits critiq-builtin" in run("check", "own.yaml")[0]


def test_the_example_in_the_documentation_fits_the_built_in_model(run: Any, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "moderation.md").read_text()
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert example
    (tmp_path / "gallery.yaml").write_text(example[1])
    assert "gallery 1: 3 rules over visual_quality, alignment; fits critiq-builtin" in run("check", "gallery.yaml")[0]


@pytest.mark.parametrize("arguments", [("try",), ("check",), ("check", "none.yaml"), ("tri",), ("try", "new.yaml")])
def test_wrong_usage_is_one_line(run: Any, arguments: tuple[str, ...]) -> None:
    out, err = run(*arguments, code=2)
    assert (out, len(err.splitlines())) == ("", 1)
