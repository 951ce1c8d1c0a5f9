"""Scores through a real server: what is kept, taken up again, and reported as failed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import critiq
from critiq_evaluation.datasets.types import Dataset, Preference, RatedPicture, Scale
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.local_server import local_server
from critiq_evaluation.scoring import Asked, ModelScores, score_dataset, score_pictures
from tests.support.bundles import edit_manifest, write_bundle


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey pictures: ``N.png`` has the value N."""
    root = tmp_path_factory.mktemp("images")
    for value in (0, 51, 102, 204, 255):
        Image.new("RGB", (24, 20), (value,) * 3).save(root / f"{value}.png")
    (root / "broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundles = tmp_path_factory.mktemp("bundles")
    write_bundle(bundles)
    shifted = write_bundle(bundles, "reversed", bias=0.25)
    dimensions = json.loads((shifted / "manifest.json").read_text())["dimensions"]
    dimensions[0]["direction"] = "lower_is_better"
    edit_manifest(shifted, dimensions=dimensions)
    with local_server(["tiny", "reversed"], [bundles]) as url:
        yield url


def score(url: str, images: Path, *asked: Asked, models: tuple[str, ...] = ("tiny",), **options: object) -> ModelScores:
    return score_pictures(asked, images, models, server=url, **options)[-1]  # type: ignore[arg-type]


def test_scores_are_those_of_the_server(url: str, images: Path) -> None:
    found = score(url, images, Asked("51.png"), Asked("255.png", "a red house"))
    assert found.name == "tiny:1"
    assert found.values("brightness") == pytest.approx({Asked("51.png"): 0.2, Asked("255.png", "a red house"): 1.0})
    assert found.values("wordiness") == pytest.approx({Asked("255.png", "a red house"): 5.0})
    assert found.failures("wordiness") == {Asked("51.png"): "no score for wordiness: the picture has no prompt"}


def test_lower_is_better_is_turned_round(url: str, images: Path) -> None:
    found = score(url, images, Asked("51.png"), Asked("255.png"), models=("reversed",))
    assert found.values("brightness") == pytest.approx({Asked("51.png"): -0.45, Asked("255.png"): -1.25})
    calibrated = found.values("brightness", "calibrated")
    assert set(calibrated) == set(found.values("brightness"))
    assert all(value >= 0 for value in calibrated.values())


def test_a_picture_that_fails_stops_nothing(url: str, images: Path) -> None:
    asked = [Asked("broken.png"), Asked("gone.png"), Asked("../0.png"), Asked("/etc/hostname"), Asked("0.png")]
    found = score(url, images, *asked)
    assert found.values("brightness") == {Asked("0.png"): 0.0}
    failures = {one.image: why for one, why in found.failures("brightness").items()}
    assert "image" in failures["broken.png"]
    assert failures["gone.png"] == "cannot read 'gone.png': No such file or directory"
    assert "outside the directory" in failures["../0.png"]
    assert "outside the directory" in failures["/etc/hostname"]


def test_what_is_known_is_not_asked_again(url: str, images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "scores.jsonl"
    first = score(url, images, Asked("0.png", "a cat"), Asked("51.png"), Asked("broken.png"), cache=cache)
    lines = cache.read_text().splitlines()
    assert len(lines) == 2  # failures are tried again
    assert "a cat" not in cache.read_text()

    # The same picture under another name, and one that is new.
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copy(images / "0.png", moved / "renamed.png")
    shutil.copy(images / "255.png", moved / "new.png")
    again = score(url, moved, Asked("renamed.png", "a cat"), Asked("new.png"), cache=cache)
    assert (
        again.values("wordiness")[Asked("renamed.png", "a cat")] == first.values("wordiness")[Asked("0.png", "a cat")]
    )
    assert len(cache.read_text().splitlines()) == 3

    # Another prompt and another model are other questions.
    score(url, moved, Asked("renamed.png", "a dog"), cache=cache)
    score(url, moved, Asked("renamed.png", "a cat"), models=("reversed",), cache=cache)
    assert len(cache.read_text().splitlines()) == 5
    # Scores come from the file: the server is asked for the model alone.
    edited = [json.loads(line) for line in cache.read_text().splitlines()]
    for line in edited:
        line["scores"]["brightness"][0] = 123.0
    cache.write_text("".join(json.dumps(line) + "\n" for line in edited))
    assert score(url, moved, Asked("new.png"), cache=cache).values("brightness") == {Asked("new.png"): 123.0}


def test_a_line_that_was_cut_off_is_asked_again(url: str, images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "scores.jsonl"
    score(url, images, Asked("0.png"), Asked("51.png"), cache=cache)
    whole = cache.read_text()
    cache.write_text(whole[:-20])
    found = score(url, images, Asked("0.png"), Asked("51.png"), cache=cache)
    assert len(found.values("brightness")) == 2
    assert cache.read_text().startswith(whole[:-20] + "\n")
    assert len(score(url, images, Asked("0.png"), Asked("51.png"), cache=cache).values("brightness")) == 2
    assert len(cache.read_text().splitlines()) == 3


def test_a_file_that_is_no_cache_is_left_alone(url: str, images: Path, tmp_path: Path) -> None:
    other = tmp_path / "notes.txt"
    other.write_text("my notes\n")
    with pytest.raises(EvaluationError, match="is no cache of scores"):
        score(url, images, Asked("0.png"), cache=other)
    assert other.read_text() == "my notes\n"


def test_only_the_dimensions_that_are_wanted(url: str, images: Path) -> None:
    asked = (Asked("0.png"), Asked("51.png", "a cat"))
    found = score(url, images, *asked, dimensions=("wordiness", "of another model"))
    assert set(found.outcomes[asked[1]].scores) == {"wordiness"}
    assert "no prompt, which is needed for wordiness" in found.failures("wordiness")[asked[0]]
    with pytest.raises(EvaluationError, match="has none of beauty; it has brightness, wordiness"):
        score(url, images, *asked, dimensions=("beauty",))
    with pytest.raises(EvaluationError, match="no dimension 'beauty'"):
        found.values("beauty")


def test_wrong_names_cost_no_scores(url: str, images: Path, tmp_path: Path) -> None:
    cache = tmp_path / "scores.jsonl"
    with pytest.raises(critiq.errors.NotFound, match="known models: "):
        score(url, images, Asked("0.png"), models=("tiny", "tinny"), cache=cache)
    with pytest.raises(critiq.errors.NotFound):
        score(url, images, Asked("0.png"), models=("tiny:9",), cache=cache)
    with pytest.raises(EvaluationError, match="no directory of pictures"):
        score(url, images / "nowhere", Asked("0.png"), cache=cache)
    assert not cache.exists()


def test_a_datasets_pictures_are_asked_once(url: str, images: Path) -> None:
    made = Dataset(
        "made",
        {"quality": Scale(0, 1)},
        (RatedPicture("0.png", {"quality": 0}, "a cat"), RatedPicture("51.png", {"quality": 1})),
        (Preference("0.png", "204.png", "a cat"), Preference("204.png", "0.png", "a dog")),
    )
    found = score_dataset(made, images, ["tiny"], server=url)[0]
    assert list(found.outcomes) == [
        Asked("0.png", "a cat"),
        Asked("51.png"),
        Asked("204.png", "a cat"),
        Asked("204.png", "a dog"),
        Asked("0.png", "a dog"),
    ]


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"did not start: .*no model 'nope'"), local_server(["nope"]):
        pass
    with pytest.raises(EvaluationError, match="is no directory of bundles"), local_server([], [tmp_path / "gone"]):
        pass
