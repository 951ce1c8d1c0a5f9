"""Agreement between models that are served, on a folder of pictures."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from scipy import stats

from critiq_evaluation.agreement import AgreementOfModels, Disagreement, Pair, Series
from critiq_evaluation.agreement_report import markdown
from critiq_evaluation.commands.agreement import main
from critiq_evaluation.local_server import local_server
from critiq_evaluation.scoring import Asked
from tests.support.bundles import edit_manifest, write_bundle, write_simulated

COUNT = 20
TOKENS = [1 + (7 * i) % 6 for i in range(COUNT)]
"""Words of each picture's prompt: wordiness is brightness times so many and two, as a text has a begin and an end."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """``tiny``, ``shifted`` that ranks alike, and ``reversed`` for which lower is better."""
    bundles = tmp_path_factory.mktemp("bundles")
    write_bundle(bundles)
    write_bundle(bundles, "shifted", bias=0.5)
    turned = write_bundle(bundles, "reversed")
    dimensions = json.loads((turned / "manifest.json").read_text())["dimensions"]
    dimensions[0]["direction"] = "lower_is_better"
    edit_manifest(turned, dimensions=dimensions)
    write_simulated(bundles)
    with local_server(["tiny", "shifted", "reversed"], [bundles]) as url:
        yield url


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures, the later the brighter."""
    root = tmp_path_factory.mktemp("images")
    (root / "more").mkdir()
    for i in range(COUNT):
        name = f"more/{i:02}.png" if i % 2 else f"{i:02}.png"
        Image.new("RGB", (24, 20), (40 + 10 * i,) * 3).save(root / name)
    return root


@pytest.fixture(scope="module")
def prompts(images: Path) -> Path:
    path = images / "prompts.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "prompt"])
        writer.writerows([f"{i:02}.png", " ".join(["cat"] * TOKENS[i])] for i in range(COUNT))
    return path


def command(url: str, images: Path, out: Path, *more: str) -> list[str]:
    return ["--images", str(images), "--out", str(out), "--server", url, *more]


def test_all_models_that_are_loaded(url: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(url, images, tmp_path, "--resamples", "200")) == 0
    said = capsys.readouterr().out
    assert "tiny:1 brightness and shifted:1 brightness: SRCC 1.0000 (1.0000 to 1.0000); 20 pictures" in said.replace(
        "shifted:1 brightness and tiny:1 brightness", "tiny:1 brightness and shifted:1 brightness"
    )
    assert "left out, as they need prompts (--prompts): " in said
    document = json.loads((tmp_path / "agreement.json").read_text())
    srcc = {frozenset((p["first"]["model"], p["second"]["model"])): p["srcc"] for p in document["pairs"]}
    assert srcc == {
        frozenset(("tiny:1", "shifted:1")): pytest.approx(1),
        frozenset(("tiny:1", "reversed:1")): pytest.approx(-1),
        frozenset(("shifted:1", "reversed:1")): pytest.approx(-1),
    }
    worst = next(p for p in document["pairs"] if p["srcc"] < 0)["most_apart"]
    assert {worst[0]["image"], worst[1]["image"]} == {"00.png", "more/19.png"}
    assert {worst[0]["first"], worst[0]["second"]} == {0.0, 1.0}
    text = (tmp_path / "agreement.md").read_text()
    assert "differ most on" in text
    assert "| more/19.png | " in text
    with Image.open(tmp_path / "heatmap.png") as heatmap, Image.open(tmp_path / "disagreement.jpg") as sheet:
        assert min(heatmap.size) > 300
        assert sheet.height > 500  # two pairs that differ; the two that agree have no row
        assert len(sheet.convert("L").getcolors() or []) > 20


def test_dimensions_of_one_model_with_prompts(url: str, images: Path, prompts: Path, tmp_path: Path) -> None:
    more = ["--model", "tiny", "--prompts", str(prompts), "--resamples", "50"]
    assert main(command(url, images, tmp_path, *more)) == 0
    (pair,) = json.loads((tmp_path / "agreement.json").read_text())["pairs"]
    bright = [40 + 10 * i for i in range(COUNT)]
    expected = stats.spearmanr(bright, [b * (t + 2) for b, t in zip(bright, TOKENS, strict=True)]).statistic
    assert pair["srcc"] == pytest.approx(expected, abs=1e-9)
    assert pair["interval"]["low"] < expected < pair["interval"]["high"]
    with (tmp_path / "pictures.csv").open() as file:
        rows = {row["image"]: row for row in csv.DictReader(file)}
    assert rows["more/03.png"]["prompt"] == "cat cat cat cat"
    assert float(rows["more/03.png"]["tiny:1 brightness"]) == pytest.approx(70 / 255, abs=1e-6)


def test_the_same_command_again_goes_on_from_the_scores(url: str, images: Path, tmp_path: Path) -> None:
    more = ["--model", "tiny", "--model", "shifted", "--dimension", "brightness", "--resamples", "0"]
    assert main(command(url, images, tmp_path, *more)) == 0
    lines = (tmp_path / "scores.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 2 * COUNT
    pairs = (tmp_path / "pairs.csv").read_text()
    (tmp_path / "scores.jsonl").write_text("".join(lines[:7]))  # an interrupted run
    assert main(command(url, images, tmp_path, *more)) == 0
    assert (tmp_path / "scores.jsonl").read_text().startswith("".join(lines[:7]))
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 2 * COUNT
    assert (tmp_path / "pairs.csv").read_text() == pairs


def test_a_model_without_the_dimension_is_left_out_and_named(
    url: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [word for name in ("tiny", "simulated", "shifted") for word in ("--model", name)]
    assert main(command(url, images, tmp_path, *named, "--dimension", "brightness", "--resamples", "0")) == 0
    said = capsys.readouterr()
    assert said.err == "critiq agreement: simulated has no brightness; it is left out\n"
    assert "tiny:1 brightness and shifted:1 brightness: SRCC 1.0000; 20 pictures" in said.out


def test_a_picture_that_cannot_be_read(
    url: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(0, COUNT, 2):
        (folder / f"{i:02}.png").write_bytes((images / f"{i:02}.png").read_bytes())
    (folder / "broken.png").write_bytes(b"no picture")
    more = ["--model", "tiny", "--model", "shifted", "--dimension", "brightness", "--resamples", "0"]
    assert main(command(url, folder, tmp_path / "out", *more)) == 1
    said = capsys.readouterr()
    assert "SRCC 1.0000; 10 pictures" in said.out
    assert "tiny:1 brightness: 1 without a score, the first broken.png: " in said.err
    assert "## Without a score" in (tmp_path / "out" / "agreement.md").read_text()
    assert not (tmp_path / "out" / "disagreement.jpg").exists()  # they agree on all


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--model", "tinny"], "there is no model 'tinny'"),
        (["--dimension", "beauty"], "--dimension 'beauty': no model has it; there is brightness, wordiness"),
        (["--model", "tiny", "--dimension", "brightness"], "one thing alone has no agreement: tiny"),
        (["--model", "tiny"], "tiny:1 brightness alone has no agreement"),
        (["--bundles", "."], "--bundles is for --local"),
        (["--images", "nowhere"], "nowhere is not a directory of pictures"),
        (["--prompts", "nowhere.csv"], "no such file: nowhere.csv"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    url: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    assert main(command(url, images, tmp_path, *more)) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_directory_without_pictures_and_a_server_that_is_not_there(url: str, images: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert main(command(url, tmp_path / "empty", tmp_path / "out")) == 2
    assert main(command("127.0.0.1:1", images, tmp_path / "out", "--timeout", "1")) == 1


def test_what_is_not_defined_is_said() -> None:
    one, other = (Series(name, "d|x", {Asked("a"): 1.0}, {}, within_prompt=True) for name in ("m:1", "n:1"))
    pair = Pair(one, other, 1, None, None, (), "1 pictures; a correlation needs 3 or more")
    text = markdown(AgreementOfModels(1, (one, other), (pair,)))
    assert "| m:1 d\\|x | 1.0000 | – |" in text
    assert "a correlation needs 3 or more" in text


def test_models_of_one_dimension_come_before_those_of_two() -> None:
    series = [Series(f"m{i}:1", name, {}, {}) for i, name in enumerate(["quality", "quality", "alignment"])]
    apart = (Disagreement("a", 0, 1),)
    pairs = (
        Pair(series[0], series[1], 9, 0.5, None, apart),
        Pair(series[0], series[2], 9, 0.1, None, apart),
        Pair(series[1], series[2], 9, None, None, apart),
    )
    assert AgreementOfModels(9, tuple(series), pairs).least_agreeing() == [pairs[0], pairs[1]]
