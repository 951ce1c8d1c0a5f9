"""``critiq evaluate`` from the label file to the report, through a server that listens."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from critiq_evaluation.commands.evaluate import main
from critiq_evaluation.local_server import local_server
from tests.support.bundles import write_bundle

COUNT = 40


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    write_bundle(root, "shifted", bias=0.5)
    return root


@pytest.fixture(scope="module")
def url(bundles: Path) -> Iterator[str]:
    with local_server(["tiny", "shifted"], [bundles]) as url:
        yield url


@pytest.fixture(scope="module")
def ratings() -> np.ndarray:
    generator = np.random.default_rng(2)
    return np.clip(np.arange(COUNT) / COUNT * 5 + generator.normal(0, 0.6, COUNT), 0, 5).round(3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures, picture N brighter than those before it."""
    root = tmp_path_factory.mktemp("images")
    for i in range(COUNT):
        Image.new("RGB", (24, 20), (i * 6,) * 3).save(root / f"sd1.5_normal_{i:03}.jpg", quality=100)
    return root


def label_file(path: Path, ratings: np.ndarray, *further: str) -> Path:
    """In AGIQA-3K's layout."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["name", "prompt", "adj1", "adj2", "style", "mos_quality", "std_quality", "mos_align", "std_align"]
        )
        for i, rating in enumerate(ratings):
            writer.writerow([f"sd1.5_normal_{i:03}.jpg", "a red house", "", "", "", rating, 0.3, rating, 0.3])
        for name in further:
            writer.writerow([name, "a cat", "", "", "", 2.5, 0.3, 2.5, 0.3])
    return path


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory, ratings: np.ndarray) -> Path:
    return label_file(tmp_path_factory.mktemp("labels") / "data.csv", ratings)


def arguments(labels: Path, images: Path, out: Path, *more: str) -> list[str]:
    start = ["--dataset", "agiqa-3k", "--labels", str(labels), "--images", str(images), "--out", str(out)]
    return [*start, "--map", "brightness=quality", *more]


def test_from_labels_to_the_report(
    url: str, labels: Path, images: Path, ratings: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--server", url, "--model", "tiny", "--model", "shifted:1", "--protocol", "all", "--protocol", "random"]
    assert main(arguments(labels, images, tmp_path / "out", *more, "--repeats", "2", "--resamples", "200")) == 0
    printed = capsys.readouterr().out
    expected = stats.spearmanr(np.arange(COUNT), ratings).statistic
    assert f"tiny:1 brightness against quality: SRCC {expected:.4f} (" in printed
    assert f"report: {tmp_path / 'out' / 'report.html'}" in printed
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    first, second = document["comparisons"]
    assert first["whole"]["agreement"]["srcc"] == pytest.approx(expected, abs=1e-9)
    assert first["whole"]["agreement"]["count"] == COUNT
    assert (first["model"], second["model"]) == ("tiny:1", "shifted:1")
    assert [plan["protocol"] for plan in first["protocols"]] == ["all", "random"]
    assert len(first["protocols"][1]["repeats"]) == 2
    assert document["versus"][0]["difference"]["reason"] == "both models rank the pictures alike"
    assert len((tmp_path / "out" / "scores.jsonl").read_text().splitlines()) == 2 * COUNT


def test_the_same_command_again_asks_for_nothing_that_is_known(
    url: str, labels: Path, images: Path, tmp_path: Path
) -> None:
    command = arguments(labels, images, tmp_path, "--server", url, "--model", "tiny", "--resamples", "0")
    assert main(command) == 0
    kept = (tmp_path / "scores.jsonl").read_text()
    results = (tmp_path / "results.csv").read_text()
    (tmp_path / "scores.jsonl").write_text("".join(kept.splitlines(keepends=True)[:10]))  # an interrupted run
    assert main(command) == 0
    again = (tmp_path / "scores.jsonl").read_text()
    assert again.startswith("".join(kept.splitlines(keepends=True)[:10]))
    assert len(again.splitlines()) == COUNT
    assert (tmp_path / "results.csv").read_text() == results


def test_a_server_of_its_own(bundles: Path, labels: Path, images: Path, tmp_path: Path) -> None:
    more = ["--local", "--bundles", str(bundles), "--model", "tiny", "--resamples", "0"]
    assert main(arguments(labels, images, tmp_path, *more)) == 0
    assert json.loads((tmp_path / "results.json").read_text())["settings"]["server"] == "a process of the command's own"


def test_a_model_under_two_names_is_judged_once(url: str, labels: Path, images: Path, tmp_path: Path) -> None:
    more = ["--server", url, "--model", "tiny", "--model", "tiny:1", "--resamples", "0"]
    assert main(arguments(labels, images, tmp_path, *more)) == 0
    assert len(json.loads((tmp_path / "results.json").read_text())["comparisons"]) == 1


def test_pictures_without_a_score_are_in_the_report_and_in_the_exit_status(
    url: str, ratings: np.ndarray, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = label_file(tmp_path / "data.csv", ratings, "gone.jpg")
    command = arguments(labels, images, tmp_path / "out", "--server", url, "--model", "tiny", "--resamples", "0")
    assert main(command) == 1
    assert f"{COUNT} pictures, 1 without a score" in capsys.readouterr().out
    html = (tmp_path / "out" / "report.html").read_text()
    assert "gone.jpg" in html


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--map", "beauty=quality", "--model", "tiny"], ""),
        (["--map", "brightness=beauty"], "no rating 'beauty'; it has "),
        (["--model", "tinny"], "there is no model 'tinny'; known models: "),
        (["--protocol", "official"], "without an official split"),
        (["--protocol", "best"], "no protocol is called 'best'"),
        (["--fit", "cubic"], "--fit 'cubic': known are logistic4"),
        (["--bundles", "."], "--bundles is for --local"),
        (["--column", "name"], "--column 'name' is not of the form WHAT=COLUMN"),
        (["--images", "nowhere"], "nowhere is not a directory of pictures"),
        (["--dataset", "nonsense"], "nonsense"),
        (["--labels", "nowhere.csv"], "nowhere.csv"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    url: str,
    labels: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    command = arguments(labels, images, tmp_path, "--server", url, *more)
    if message:
        assert main(command) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
        assert not (tmp_path / "report.html").exists()
    else:  # a dimension of another model beside one that is there
        assert main([*command, "--resamples", "0"]) == 0


def test_a_server_that_is_not_there(labels: Path, images: Path, tmp_path: Path) -> None:
    assert main(arguments(labels, images, tmp_path, "--server", "127.0.0.1:1", "--timeout", "1")) == 1


def test_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    for name in ("agiqa-3k", "ma-agiqa", "logistic4-sjtu"):
        assert f"| {name} |" in printed
