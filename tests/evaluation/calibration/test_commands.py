"""``critiq calibrate`` on a bundle and pictures: the new version is served, the rest stays as it was."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import critiq
from critiq_evaluation.commands.calibrate import main
from critiq_evaluation.local_server import local_server
from critiq_server.bundles.manifest import Manifest
from critiq_server.bundles.model import read_manifest
from critiq_server.scoring.judgement import Judgement
from tests.support.bundles import edit_manifest, write_bundle

GREYS = [int(value) for value in np.linspace(0, 255, 40)]


def rating(grey: int) -> float:
    """What people say of a grey picture, on a scale of 1 to 5: not a line, with a little disagreement."""
    return round(1 + 4 * (grey / 255) ** 2 * 0.9 + 0.05 * (grey % 7), 3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``tiny`` in ``bundles/``, ``images/`` and ``labels.csv``, in which one picture is not there."""
    root = tmp_path_factory.mktemp("calibrate")
    write_bundle(root / "bundles")
    (root / "images").mkdir()
    lines = ["name,mos,prompt"]
    for grey in GREYS:
        Image.new("RGB", (24, 20), (grey,) * 3).save(root / "images" / f"{grey}.png")
        lines.append(f"{grey}.png,{rating(grey)},a cat")
    (root / "labels.csv").write_text("\n".join([*lines, "gone.png,3,a cat"]) + "\n")
    table = ["raw,mos", *(f"{grey / 255},{rating(grey)}" for grey in GREYS)]
    (root / "scores.csv").write_text("\n".join(table) + "\n")
    return root


def calibrated(folder: Path, *arguments: str) -> int:
    bundle = folder / "bundles" / "tiny" / "1"
    return main([str(bundle), f"--out={folder / 'out'}", "--repeats=2", *arguments])


@pytest.fixture(scope="module")
def versions(folder: Path) -> Iterator[str]:
    """The bundle itself, one with a calibration from pictures, and one with a head, on one server."""
    from_pictures = [f"--labels={folder / 'labels.csv'}", f"--images={folder / 'images'}", "--scale=1:5"]
    more = [f"--reference={folder / 'images'}", "--population=greys", "--dimension=brightness"]
    assert calibrated(folder, *from_pictures, *more, "--version=people") == 0
    bundle = folder / "bundles" / "tiny" / "1"
    head = ["head", str(bundle), "--feature=image_encoder.brightness", "--name=liked", "--share=0.5", "--repeats=4"]
    assert main([*head, "--beside=brightness", f"--out={folder / 'out'}", "--version=head", *from_pictures]) == 0
    with local_server(["tiny:1", "tiny:people", "tiny:head"], [folder / "bundles", folder / "out"]) as url:
        yield url


def test_the_server_gives_ratings_and_the_same_ranks(versions: str, folder: Path) -> None:
    with critiq.Client(versions) as client:
        paths = [folder / "images" / f"{grey}.png" for grey in GREYS]
        old = [client.score(path, model="tiny", version="1")["brightness"] for path in paths]
        new = [client.score(path, model="tiny", version="people")["brightness"] for path in paths]
    assert [score.raw for score in old] == [score.raw for score in new]
    said = [1 + 4 * (score.calibrated or 0) for score in new]
    assert np.sqrt(np.mean((np.array(said) - [rating(grey) for grey in GREYS]) ** 2)) < 0.3
    assert said == sorted(said)
    # Of 40 pictures those beyond the ends of the map may be tied, and those that rounding to 4 decimals makes alike.
    assert len(set(said)) >= 35
    assert [new[0].percentile, new[-1].percentile] == [pytest.approx(0, abs=3), 100]


def test_the_new_version_says_where_it_came_from(versions: str, folder: Path) -> None:
    old, new = (read_manifest(folder / place) for place in ("bundles/tiny/1", "out/tiny/people"))
    dimension = new.dimension("brightness")
    assert dimension.calibration is not None
    assert "on 40 human ratings of 1 to 5" in dimension.calibration.method
    assert dimension.reference is not None
    assert (dimension.reference.population, dimension.reference.count) == ("greys", 40)
    assert "critiq calibrate" in new.provenance.command
    assert old.provenance.command in new.provenance.command
    assert new.dimension("wordiness") == old.dimension("wordiness")
    assert {name: digest for name, digest in new.files.items() if name in old.files} == old.files
    assert old.version == "1"


def test_the_report(versions: str, folder: Path) -> None:
    report = folder / "out" / "tiny-people-report"
    found = json.loads((report / "calibration.json").read_text())
    assert found["labels"] == 40
    assert found["left_out"] == ["gone.png: cannot read 'gone.png': No such file or directory"]
    assert found["after"]["rmse"] < found["before"]["rmse"]
    assert found["srcc_after"] == pytest.approx(found["srcc_before"], abs=0.005)
    assert found["learning_curve"]["points"]
    assert found["reference_outside"] == 0
    for name in ("calibration.png", "learning_curve.png"):
        with Image.open(report / name) as picture:
            assert picture.format == "PNG"


def test_a_head_is_one_more_dimension(versions: str, folder: Path) -> None:
    with critiq.Client(versions) as client:
        for grey in (GREYS[5], GREYS[20], GREYS[35]):
            result = client.score(folder / "images" / f"{grey}.png", model="tiny", version="head")
            assert result["liked"].raw == pytest.approx(rating(grey), abs=0.8)  # a line through a bend
            assert result["liked"].calibrated == pytest.approx(min(max((result["liked"].raw - 1) / 4, 0), 1), abs=1e-4)
            assert result["brightness"].raw == pytest.approx(grey / 255, abs=1e-5)
    with np.load(folder / "out/tiny/head/golden.npz") as golden:
        assert list(golden["dimensions"]) == ["brightness", "wordiness", "liked"]
    found = json.loads((folder / "out/tiny-head-report/head.json").read_text())
    assert (found["labels"], found["tested"]) == (20, 20)
    assert found["head"]["srcc"] > 0.95
    assert found["label_free"]["srcc"] > 0.95


@pytest.mark.parametrize("method", ["linear", "logistic4", "isotonic"])
def test_lower_is_better(folder: Path, tmp_path: Path, method: str) -> None:
    bundle = write_bundle(tmp_path, "darkness")
    dimensions = json.loads((bundle / "manifest.json").read_text())["dimensions"]
    dimensions[0] |= {"direction": "lower_is_better", "calibration": {"raw": [0.0, 1.0], "calibrated": [1.0, 0.0]}}
    edit_manifest(bundle, dimensions=dimensions)
    # The brighter, the worse: 5 is the worst here.
    arguments = [f"--scores={folder / 'scores.csv'}", "--scale=5:1", "--dimension=brightness", f"--method={method}"]
    assert main([str(bundle), *arguments, f"--out={tmp_path / 'out'}", "--version=2", "--repeats=1"]) == 0
    judgement = Judgement(read_manifest(tmp_path / "out/darkness/2").dimension("brightness"), "", "")
    values = [judgement.score(grey / 255, from_store=False).calibrated or 0.0 for grey in GREYS]
    assert values == sorted(values, reverse=True)
    assert values[0] > 0.8
    assert values[-1] < 0.25


def test_the_unit_of_the_report_does_not_change_the_bundle(folder: Path, tmp_path: Path) -> None:
    found: dict[str, Manifest] = {}
    for unit in ("mos", "0..1"):
        arguments = [f"--scores={folder / 'scores.csv'}", "--scale=1:5", "--dimension=brightness", f"--to={unit}"]
        out = tmp_path / unit.replace(".", "")
        bundle = str(folder / "bundles/tiny/1")
        assert main([bundle, *arguments, "--method=linear", f"--out={out}", "--version=2", "--repeats=1"]) == 0
        found[unit] = read_manifest(out / "tiny/2")
    one, other = (found[unit].dimension("brightness").calibration for unit in found)
    assert one is not None
    assert other is not None
    np.testing.assert_allclose(one.calibrated, other.calibrated, atol=1e-12)
    assert one.method == other.method


BAD: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "no such dimension": (lambda at: ["--dimension=beauty", f"--scores={at / 'scores.csv'}"], "it has brightness"),
    "neither labels nor scores": (lambda at: [], "give either --scores FILE, or --labels FILE and --images DIR"),
    "labels alone": (lambda at: [f"--labels={at / 'labels.csv'}", "--scale=1:5"], "--labels needs --images DIR"),
    "no scale": (lambda at: [f"--scores={at / 'scores.csv'}"], "needs the ratings' scale"),
    "bad scale": (lambda at: [f"--scores={at / 'scores.csv'}", "--scale=5"], "expected MIN:MAX"),
    "outside the scale": (lambda at: [f"--scores={at / 'scores.csv'}", "--scale=1:4"], "outside the scale 1 to 4"),
    "falling": (lambda at: [f"--scores={at / 'scores.csv'}", "--scale=5:1"], "fit: failed: SRCC of scores and ratings"),
    "no column": (lambda at: [f"--scores={at / 'labels.csv'}", "--scale=1:5"], "no column is called raw or score"),
    "method": (lambda at: [f"--scores={at / 'scores.csv'}", "--method=cubic"], "known are linear, logistic4"),
    "own version": (lambda at: [f"--scores={at / 'scores.csv'}", "--version=1"], "--version '1' is the bundle's own"),
    "no version": (lambda at: [f"--scores={at / 'scores.csv'}", "--version=../../x"], "small letters, digits"),
    "reference": (
        lambda at: [f"--scores={at / 'scores.csv'}", f"--reference={at}/no"],
        "no is no directory of pictures",
    ),
    "prompts": (
        lambda at: [f"--scores={at / 'scores.csv'}", f"--reference={at}", "--dimension=wordiness"],
        "wordiness needs a prompt",
    ),
    "no bundle": (lambda at: [f"--scores={at / 'scores.csv'}", str(at / "images")], "unexpected extra argument"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    make, message = BAD[name]
    arguments = make(folder)
    arguments += [] if any("--dimension" in one for one in arguments) else ["--dimension=brightness"]
    arguments += [] if any("--version" in one for one in arguments) else ["--version=x"]
    bundle = folder / "bundles/tiny/1"
    assert main([str(bundle), f"--out={tmp_path}", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_version_is_never_overwritten(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(folder / "bundles/tiny/1"), "--dimension=brightness", "--scale=1:5", "--method=linear"]
    arguments += [f"--scores={folder / 'scores.csv'}", f"--out={tmp_path}", "--version=2", "--repeats=1"]
    assert main(arguments) == 0
    assert main(arguments) == 2
    assert "bundles are immutable" in capsys.readouterr().err


def test_a_bundle_that_computes_something_else_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = write_bundle(tmp_path, "broken", expected_shift=0.5)
    arguments = [f"--scores={folder / 'scores.csv'}", "--dimension=brightness", "--scale=1:5", "--method=linear"]
    assert main([str(broken), *arguments, f"--out={tmp_path / 'out'}", "--version=2", "--repeats=1"]) == 2
    assert "the server would refuse the bundle: golden record" in capsys.readouterr().err
    assert not list((tmp_path / "out").rglob("manifest.json"))
    assert not (tmp_path / "out" / "broken").exists()


def test_a_head_without_onnx_says_what_to_install(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    arguments = ["head", str(folder / "bundles/tiny/1"), "--feature=image_encoder", "--name=liked", "--scale=1:5"]
    arguments += [f"--labels={folder / 'labels.csv'}", f"--images={folder}", f"--out={tmp_path}", "--version=2"]
    assert main(arguments) == 2
    assert "pip install 'critiq[export]'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "feature", "message"),
    [
        ("liked", "image_encoder.pixels", "it has image_encoder.brightness"),
        ("brightness", "image_encoder", "the bundle has a dimension of that name"),
        ("liked", "text_encoder.count", "that stage does not see the picture"),
        ("Wow!", "image_encoder", "small letters, digits"),
    ],
)
def test_bad_heads(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, feature: str, message: str
) -> None:
    arguments = ["head", str(folder / "bundles/tiny/1"), f"--feature={feature}", f"--name={name}", "--scale=1:5"]
    arguments += [f"--labels={folder / 'labels.csv'}", f"--images={folder / 'images'}", "--share=0.5", "--repeats=1"]
    assert main([*arguments, f"--out={tmp_path}", "--version=2"]) == 2
    assert message in capsys.readouterr().err
