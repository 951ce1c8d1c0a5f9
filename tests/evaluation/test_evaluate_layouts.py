"""Every published layout, from its label file through a server that listens to the report."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from critiq_evaluation.commands.evaluate import main
from critiq_evaluation.local_server import local_server
from tests.support.bundles import write_bundle
from tests.support.datasets import LAYOUTS, Written, write_dataset, write_preferences


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundles = tmp_path_factory.mktemp("bundles")
    write_bundle(bundles)
    with local_server(["tiny"], [bundles]) as url:
        yield url


def evaluate(url: str, written: Written, out: Path, *more: str) -> dict[str, Any]:
    """The report's figures. The model scores how bright a picture is, and brighter ones are rated higher."""
    start = ["--dataset", written.name, "--labels", str(written.labels), "--images", str(written.images)]
    assert main([*start, "--server", url, "--out", str(out), "--resamples", "100", *more]) == 0
    assert "</html>" in (out / "report.html").read_text()
    document: dict[str, Any] = json.loads((out / "results.json").read_text())
    return document


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_of_ratings(name: str, url: str, tmp_path: Path) -> None:
    written = write_dataset(name, tmp_path)
    document = evaluate(url, written, tmp_path / "out", "--map", f"brightness={written.rating}")
    whole = document["comparisons"][0]["whole"]
    assert document["dataset"]["problems"] == []
    assert whole["agreement"]["count"] == written.pictures
    assert whole["missing"] == 0
    assert whole["agreement"]["srcc"] == pytest.approx(1)
    assert whole["agreement"]["fit"]["state"] == "ok"


@pytest.mark.parametrize("name", ["hpdv2", "imagereward", "pick-a-pic"])
def test_every_layout_of_preferences(name: str, url: str, tmp_path: Path) -> None:
    written = write_preferences(name, tmp_path)
    document = evaluate(url, written, tmp_path / "out", "--map", "brightness=preference")
    found = document["preferences"][0]
    assert found["accuracy"]["pairs"] == written.pictures
    assert found["accuracy"]["accuracy"] == 1
    assert found["missing"] == 0


def test_preferences_have_no_protocol(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written = write_preferences("imagereward", tmp_path)
    start = ["--dataset", written.name, "--labels", str(written.labels), "--images", str(written.images)]
    assert main([*start, "--server", url, "--out", str(tmp_path / "out"), "--protocol", "official"]) == 2
    assert "imagereward has no rated pictures; protocols need them" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "protocol", "parts"),
    [
        ("koniq-10k", "official", {"test": 2, "validation": 2, "train": 8}),
        ("aigiqa-20k", "official", {"test": 4, "validation": 2, "train": 6}),
        ("aigiqa-20k", "aigiqa20k", {"all": 12, "rectangular resolution": 12}),
        (
            "au-iqa",
            "au-iqa",
            {"SR first": 3, "LLE first": 3, "SR second": 3, "LLE second": 3, "SR": 6, "LLE": 6, "all": 12},
        ),
        ("agiqa-3k", "ma-agiqa", {"test": 3}),
    ],
)
def test_the_datasets_own_protocols(name: str, protocol: str, parts: dict[str, int], url: str, tmp_path: Path) -> None:
    written = write_dataset(name, tmp_path)
    start = ["--dataset", written.name, "--labels", str(written.labels), "--images", str(written.images)]
    start += ["--server", url, "--out", str(tmp_path / "out"), "--map", f"brightness={written.rating}"]
    assert main([*start, "--protocol", protocol, "--resamples", "0"]) == 0
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    found = {row["part"]: row for row in document["comparisons"][0]["protocols"][0]["parts"]}
    assert {part: row["agreement"]["count"] for part, row in found.items()} == parts
    for row in found.values():
        assert row["agreement"]["srcc"] == (None if row["agreement"]["count"] < 3 else pytest.approx(1))


def test_a_label_file_alone_is_recognised(url: str, tmp_path: Path) -> None:
    written = write_dataset("kadid-10k", tmp_path)
    command = ["--dataset", str(written.labels), "--images", str(written.images), "--server", url]
    assert main([*command, "--out", str(tmp_path / "out"), "--map", "brightness=quality", "--resamples", "0"]) == 0
    document = json.loads((tmp_path / "out" / "results.json").read_text())
    assert document["settings"]["dataset"] == f"{written.labels}, read as kadid-10k"
    assert "distortion" not in document["comparisons"][0]["groups"]  # all are of one distortion
    assert [row["part"] for row in document["comparisons"][0]["groups"]["reference"]] == [
        "I01.png",
        "I02.png",
        "I03.png",
    ]
