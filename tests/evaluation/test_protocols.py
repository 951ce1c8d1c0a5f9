"""Splits as the papers draw them, their sub-sets, and datasets that lack what a protocol needs."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import pytest
from PIL import Image

from critiq_evaluation.datasets.types import Dataset, Problem, RatedPicture, Scale
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.protocols import PROTOCOLS, Options, by_group, plan

MOS = Path(__file__).parents[3] / "shared" / "data" / "mos"


def dataset(*pictures: RatedPicture, problems: tuple[Problem, ...] = ()) -> Dataset:
    return Dataset("made", {"quality": Scale(0, 5)}, pictures, problems=problems)


def numbered(count: int, **groups: str) -> list[RatedPicture]:
    return [
        RatedPicture(f"{i}.png", {"quality": i % 5}, prompt=f"prompt {i // 4}", groups=groups) for i in range(count)
    ]


def names(pictures: tuple[RatedPicture, ...]) -> list[str]:
    return [picture.image for picture in pictures]


def test_all_is_every_picture_once() -> None:
    found = plan("all", dataset(*numbered(10)))
    assert [(part.name, len(part.pictures)) for part in found.parts] == [("all", 10)]


def test_random_splits_differ_by_seed_and_repeat() -> None:
    found = plan("random", dataset(*numbered(100)), Options(repeats=3, seed=5))
    assert [part.name for part in found.repeats] == ["seed 5", "seed 6", "seed 7"]
    assert [len(part.pictures) for part in found.repeats] == [20] * 3
    assert found == plan("random", dataset(*numbered(100)), Options(repeats=3, seed=5))
    assert found.repeats[0] != found.repeats[1]
    assert found.repeats[1] == plan("random", dataset(*numbered(100)), Options(repeats=1, seed=6)).repeats[0]
    assert "7:1:2" in found.rule


def test_no_content_is_in_two_parts() -> None:
    pictures = numbered(100)
    found = plan("content", dataset(*pictures), Options(repeats=4))
    for part in found.repeats:
        test = set(names(part.pictures))
        prompts = {picture.prompt for picture in part.pictures}
        assert len(prompts) == 5
        assert all((picture.image in test) == (picture.prompt in prompts) for picture in pictures)
    assert "by prompt, of which there are 25" in found.rule


def test_content_is_the_reference_where_there_is_one() -> None:
    pictures = [
        RatedPicture(f"I{i:02}_{j}.png", {"quality": 1}, groups={"reference": f"I{i:02}.png"})
        for i in range(10)
        for j in range(3)
    ]
    found = plan("content", dataset(*pictures), Options(repeats=1))
    assert len({picture.groups["reference"] for picture in found.repeats[0].pictures}) == 2
    assert len(found.repeats[0].pictures) == 6


def test_the_official_split_begins_with_test() -> None:
    pictures = [RatedPicture(f"{i}.png", {"quality": 1}, split=split) for i, split in enumerate(["train", "test", ""])]
    found = plan("official", dataset(*pictures))
    assert [(part.name, names(part.pictures)) for part in found.parts] == [("test", ["1.png"]), ("train", ["0.png"])]
    assert found.notes == ("1 pictures stand in no part of the official split",)


def test_ma_agiqas_split_is_that_of_its_script() -> None:
    if not MOS.is_dir():
        pytest.skip("no ../shared/data/mos beside the checkout")
    with (MOS / "agiqa3k_data.csv").open(newline="") as file:
        rows = [row["name"] for row in csv.DictReader(file)]
    order = list(range(len(rows)))
    random.seed(20)
    random.shuffle(order)
    expected = [rows[index] for index in order[int(len(rows) * 0.8) :]]

    found = plan("ma-agiqa", dataset(*(RatedPicture(name, {"quality": 1}) for name in rows)))
    assert names(found.parts[0].pictures) == expected
    assert len(expected) == 597
    broken = dataset(*numbered(10), problems=(Problem("line 3", "no picture"),))
    assert any("1 problem" in note for note in plan("ma-agiqa", broken).notes)


def test_aigiqa20ks_subsets_from_columns() -> None:
    pictures = [
        RatedPicture(
            f"{i}.png",
            {"quality": 1},
            groups={
                "guidance": "default" if i % 2 else "wrong",
                "iterations": "limited" if i % 4 == 0 else "default",
                "resolution": "rectangular" if i < 5 else "default",
            },
        )
        for i in range(20)
    ]
    found = plan("aigiqa20k", dataset(*pictures))
    assert {part.name: len(part.pictures) for part in found.parts} == {
        "all": 20,
        "default guidance": 10,
        "default iterations": 15,
        "default resolution": 15,
        "wrong guidance": 10,
        "limited iterations": 5,
        "rectangular resolution": 5,
    }
    assert not found.notes


def test_aigiqa20ks_resolution_is_seen_from_the_pictures(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "1.png")
    (tmp_path / "2.png").write_bytes(b"no picture")
    found = plan("aigiqa20k", dataset(*numbered(3)), Options(images=tmp_path))
    assert {part.name: names(part.pictures) for part in found.parts[1:]} == {
        "default resolution": ["0.png"],
        "rectangular resolution": ["1.png"],
    }
    notes = " ".join(found.notes)
    assert "the resolution of 1 pictures is unknown" in notes
    assert "limited iterations: no picture is known to be of it" in notes


def test_au_iqas_tables() -> None:
    pictures = [
        RatedPicture(f"{kind}_{model}_{i}.png", {"quality": 1}, groups={"type": kind, "enhancement": model})
        for kind, models in {"SR": ["DiffBIR", "PASD"], "denoising": ["DiffBIR"]}.items()
        for model in models
        for i in range(600)
    ]
    found = plan("au-iqa", dataset(*pictures))
    assert {part.name: len(part.pictures) for part in found.parts} == {
        "SR DiffBIR": 600,
        "SR PASD": 600,
        "denoising DiffBIR": 600,
        "SR": 1200,
        "denoising": 600,
        "random-1600": 1600,
        "all": 1800,
    }
    assert len(set(names(found.parts[-2].pictures))) == 1600
    few = plan("au-iqa", dataset(*pictures[:100]))
    assert "no random-1600" in few.notes[0]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("official", "without an official split"),
        ("content", "1 different prompts; a split by content needs 5"),
        ("au-iqa", "does not say the type and the enhancement"),
        ("nonsense", "known are all, random"),
    ],
)
def test_what_a_dataset_lacks_is_named(name: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        plan(name, dataset(*numbered(4)))


def test_a_dataset_without_rated_pictures_has_no_protocol() -> None:
    for name in PROTOCOLS:
        with pytest.raises(EvaluationError, match="no rated pictures"):
            plan(name, dataset())


def test_groups_that_tell_something() -> None:
    pictures = [
        RatedPicture(f"{i}.png", {"quality": 1}, groups={"generator": "ab"[i % 2], "own": str(i), "same": "x"})
        for i in range(12)
    ]
    assert {name: [part.name for part in parts] for name, parts in by_group(dataset(*pictures)).items()} == {
        "generator": ["a", "b"]
    }
