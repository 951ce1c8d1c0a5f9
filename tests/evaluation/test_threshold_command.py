"""``critiq threshold``: from labels and scores to a policy that decides as it says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from critiq_evaluation.commands.threshold import main
from critiq_evaluation.local_server import local_server
from critiq_server.scoring.policies import Comparison, decide
from critiq_server.scoring.policy_files import read_policy
from critiq_server.scoring.policy_trial import read_recording
from tests.support.bundles import write_bundle

COUNT = 60


def accepted(at: int) -> bool:
    """The brighter half, with a few that people see otherwise."""
    return (at >= COUNT // 2) != (at % 11 == 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``labels.csv``, and scores as ``critiq score`` writes them: ``scores.csv`` and ``scores.jsonl``."""
    root = tmp_path_factory.mktemp("threshold")
    (root / "labels.csv").write_text(
        "image,label\n" + "".join(f"{at}.png,{'accept' if accepted(at) else 'reject'}\n" for at in range(COUNT))
    )
    rows = [
        {
            "file": f"some/where/{at}.png",
            "model": "tiny",
            "model_version": "1",
            "brightness_raw": at / 10,
            "brightness_calibrated": round(at / COUNT, 4),
            "brightness_percentile": round(100 * at / COUNT, 2),
        }
        for at in range(COUNT)
    ]
    (root / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (root / "scores.csv").write_text("\n".join(lines) + "\n")
    return root


def run(folder: Path, out: Path, *arguments: str) -> int:
    fixed = [f"--labels={folder / 'labels.csv'}", "--dimension=brightness", "--resamples=50", f"--out={out}"]
    return main([*fixed, *arguments])


@pytest.mark.parametrize("file", ["scores.csv", "scores.jsonl"])
@pytest.mark.parametrize("scale", ["calibrated", "percentile", "raw"])
def test_the_policy_decides_as_the_figures_say(folder: Path, tmp_path: Path, file: str, scale: str) -> None:
    out = tmp_path / "policy.yaml"
    assert run(folder, out, f"--scores={folder / file}", "--precision=0.9", f"--on={scale}", "--model=tiny:1") == 0
    policy = read_policy(out)
    assert (policy.name, policy.model, policy.model_version) == ("brightness-threshold", "tiny", "1")
    verdicts = [decide(policy, entry.result).decision for entry in read_recording(folder / "scores.jsonl")]
    passing = [at for at, verdict in enumerate(verdicts) if verdict == "accept"]
    found = json.loads(out.with_suffix(".json").read_text())
    assert len(passing) == found["passing"]
    assert found["precision"] == np.mean([accepted(at) for at in passing]) >= 0.9
    assert found["value"] == policy.comparisons[0].thresholds[0]
    assert found["intervals"]["threshold"]["low"] <= found["value"] <= found["intervals"]["threshold"]["high"]
    with Image.open(out.with_suffix(".png")) as picture:
        assert picture.format == "PNG"


def test_lower_raw_values_may_be_better(folder: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("image,label\n" + "".join(f"{at}.png,{int(not accepted(at))}\n" for at in range(COUNT)))
    out = tmp_path / "policy.yaml"
    arguments = [f"--labels={labels}", "--dimension=brightness", "--resamples=20", f"--out={out}", "--on=raw"]
    assert main([*arguments, f"--scores={folder / 'scores.csv'}", "--pass-rate=0.25", "--lower-is-better"]) == 0
    rule = read_policy(out).rules[0]
    assert isinstance(rule.when, Comparison)
    assert rule.when.above == pytest.approx(1.45, abs=0.06)
    assert rule.decision == "reject"


def test_a_server_is_asked(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(tmp_path / "bundles")
    images = tmp_path / "images"
    images.mkdir()
    for at in range(COUNT - 1):  # the last one is not there
        Image.new("RGB", (24, 20), (4 * at,) * 3).save(images / f"{at}.png")
    out = tmp_path / "policy.yaml"
    costs = ["--cost-false-accept=3", "--cost-false-reject=1", "--decision=review"]
    with local_server(["tiny"], [tmp_path / "bundles"]) as url:
        assert run(folder, out, f"--images={images}", f"--server={url}", "--model=tiny", *costs) == 0
    said = capsys.readouterr()
    assert "1 of 60 labelled pictures have no value in tiny:1; the first, 59.png" in said.err
    assert "cost without it" in said.out
    policy = read_policy(out)
    assert (policy.model, policy.model_version, policy.rules[0].decision) == ("tiny", "1", "review")
    assert policy.comparisons[0].thresholds[0] == pytest.approx(4 * COUNT / 2 / 255, abs=0.06)


def test_labels_that_contradict_each_other(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = tmp_path / "labels.csv"
    more = "3.png,accept\n50.png,reject\n51.png,accept\n51.png,reject\n7.png,reject\n"
    labels.write_text((folder / "labels.csv").read_text() + more)
    out = tmp_path / "policy.yaml"
    arguments = [f"--labels={labels}", "--dimension=brightness", "--resamples=20", "--pass-rate=0.3"]
    assert main([*arguments, f"--scores={folder / 'scores.csv'}", f"--out={out}"]) == 0
    said = capsys.readouterr().err
    assert "3 picture(s) with contradictory labels (3.png first)" in said
    assert "2 without one are left out" in said
    assert "1 picture(s) labelled more than once" in said
    assert json.loads(out.with_suffix(".json").read_text())["pictures"] == COUNT - 2


def test_two_values_of_one_picture_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("scores.csv", "scores.jsonl"):
        lines = (folder / name).read_text().splitlines()
        twice = tmp_path / name
        twice.write_text("\n".join([*lines, lines[-1].replace("0.9833", "0.5")]) + "\n")
        assert run(folder, tmp_path / "policy.yaml", f"--scores={twice}", "--precision=0.9") == 2
        assert "59.png has the values 0.9833 and 0.5" in capsys.readouterr().err


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no goal": (lambda at: [], "say what the threshold is for"),
    "two goals": (lambda at: ["--precision=0.9", "--pass-rate=0.3"], "say what the threshold is for"),
    "half a cost": (lambda at: ["--cost-false-accept=1"], "go together"),
    "no cost": (lambda at: ["--cost-false-accept=0", "--cost-false-reject=1"], "a cost of 0 needs no threshold"),
    "unreachable": (lambda at: ["--precision=1", "--dimension=spread"], "has a calibrated value of 'spread'"),
    "a scale": (lambda at: ["--precision=1", "--on=stars"], "--on 'stars': known are raw, calibrated, percentile"),
    "a decision": (lambda at: ["--precision=1", "--decision=burn"], "reject and review are possible"),
    "a place": (lambda at: ["--precision=1", f"--out={at}/no/policy.yaml"], "there is no directory"),
    "a name": (lambda at: ["--precision=0.9", "--name=my policy!"], "this makes no policy: name"),
    "direction": (lambda at: ["--precision=0.9", "--lower-is-better"], "--lower-is-better is for --on raw"),
    "both": (lambda at: ["--precision=0.9", f"--images={at}"], "give either --scores FILE, or --images DIR"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make, message = BAD[name]
    assert run(folder, tmp_path / "policy.yaml", f"--scores={folder / 'scores.jsonl'}", *make(folder)) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (tmp_path / "policy.yaml").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na.png,maybe\n", "line 2: the label is 'maybe'; accept or reject is due"),
        ("image,verdict\na.png,accept\n", "no column is called label or accept"),
        ("image,label\n", "there is no row below the header"),
        ("image,label\nx.png,accept\n", "1 of 1 labelled pictures have no value"),
        ("image,label\nx.png,accept\nx.png,reject\n", "every picture's labels contradict each other"),
    ],
)
def test_bad_labels(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text(text)
    arguments = [f"--labels={labels}", "--dimension=brightness", "--precision=0.9"]
    assert main([*arguments, f"--scores={folder / 'scores.csv'}", f"--out={tmp_path / 'policy.yaml'}"]) == 2
    assert message in capsys.readouterr().err
