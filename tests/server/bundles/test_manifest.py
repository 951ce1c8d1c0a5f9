"""Each rule of the manifest: what breaks it is refused, with words that name the place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from critiq_server.bundles.manifest import Manifest
from critiq_server.bundles.model import BrokenBundle, read_manifest
from tests.support.bundles import edit_manifest, write_bundle

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    directory = write_bundle(tmp_path_factory.mktemp("bundles"))
    found: dict[str, Any] = json.loads((directory / "manifest.json").read_text())
    return found


def put(*path: Any, value: Any) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        node: Any = manifest
        for step in path[:-1]:
            node = node[step]
        node[path[-1]] = value

    return change


def drop(*path: Any) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        node: Any = manifest
        for step in path[:-1]:
            node = node[step]
        del node[path[-1]]

    return change


CROPS = {"kind": "crops", "height": 8, "width": 8, "rows": 2, "columns": 2, "shorter_min": 4, "shorter_max": 9}
BROKEN: dict[str, tuple[Change, str]] = {
    "a schema of the future": (put("schema_version", value=2), "schema_version"),
    "an unknown entry": (put("colour", value="red"), "colour"),
    "an unknown entry of a stage": (put("stages", 0, "colour", value="red"), "colour"),
    "a name with capitals": (put("name", value="Tiny"), "name"),
    "a name that leaves its directory": (put("name", value="../tiny"), "name"),
    "a version with a blank": (put("version", value="1 2"), "version"),
    "no stages": (put("stages", value=[]), "stages"),
    "no dimensions": (put("dimensions", value=[]), "dimensions"),
    "no licence": (drop("licence"), "licence"),
    "two stages of one name": (
        put("stages", 1, "name", value="image_encoder"),
        "two stages are called 'image_encoder'",
    ),
    "two dimensions of one name": (put("dimensions", 1, "name", value="brightness"), "two dimensions"),
    "a stage before its input": (
        lambda manifest: manifest["stages"].reverse(),
        "does not stand before it",
    ),
    "an input from nowhere": (put("stages", 2, "inputs", "count", "stage", value="nowhere"), "'nowhere'"),
    "an output that is not there": (put("stages", 2, "inputs", "count", "output", value="none"), "no output 'none'"),
    "a tokenizer that is not there": (put("stages", 1, "inputs", "mask", "tokenizer", value="none"), "'none'"),
    "a dimension of no stage": (put("dimensions", 0, "stage", value="none"), "none.brightness"),
    "a dimension of no output": (put("dimensions", 0, "output", value="none"), "image_encoder.none"),
    "a prompt need that is denied": (put("dimensions", 1, "needs_prompt", value=False), "needs_prompt"),
    "a prompt need that is made up": (put("dimensions", 0, "needs_prompt", value=True), "needs_prompt"),
    "an ONNX stage without a graph": (put("stages", 0, "graph", value=None), "names no graph"),
    "a simulated stage without costs": (put("stages", 0, "runtime", value="simulated"), "gives no costs"),
    "a stage without inputs": (put("stages", 0, "inputs", value={}), "inputs"),
    "a stage without outputs": (put("stages", 0, "outputs", value=[]), "outputs"),
    "a batch of nothing": (put("stages", 0, "max_batch", value=0), "max_batch"),
    "a graph without a digest": (drop("files", "image.onnx"), "no digest"),
    "a tokenizer without a digest": (drop("files", "tokenizer.json"), "no digest"),
    "a digest that is none": (put("files", "image.onnx", value="abc"), "files"),
    "a file outside the bundle": (put("files", "../other", value="0" * 64), "leaves the bundle"),
    "a file at the root": (put("files", "/etc/passwd", value="0" * 64), "leaves the bundle"),
    "a view of no size": (put("stages", 0, "inputs", "image", "view", "height", value=0), "height"),
    "an unknown fit": (put("stages", 0, "inputs", "image", "view", "fit", value="squeeze"), "fit"),
    "windows larger than the picture": (put("stages", 0, "inputs", "image", "view", value=CROPS), "shorter_min"),
    "no tolerance": (put("dimensions", 0, "tolerance", value=0), "tolerance"),
    "an unknown direction": (put("dimensions", 0, "direction", value="up"), "direction"),
    "calibration of unequal lengths": (put("dimensions", 0, "calibration", "raw", value=[0, 1, 2]), "as many"),
    "calibration that stands still": (put("dimensions", 0, "calibration", "raw", value=[1, 1]), "increase strictly"),
    "calibration that turns round": (
        put("dimensions", 0, "calibration", value={"raw": [0, 1, 2], "calibrated": [0, 1, 0.5]}),
        "monotone",
    ),
    "calibration beyond 1": (put("dimensions", 0, "calibration", "calibrated", value=[0, 1.5]), "0..1"),
    "calibration of NaN": (put("dimensions", 0, "calibration", "raw", value=["nan", 1]), "calibration"),
    "unsorted quantiles": (put("dimensions", 0, "reference", "quantiles", value=[1, 0]), "must not decrease"),
    "NaN among the quantiles": (put("dimensions", 0, "reference", "quantiles", value=[0, "nan", 1]), "quantiles"),
    "a population of nobody": (put("dimensions", 0, "reference", "count", value=0), "count"),
}


def test_the_sound_one_is_accepted(sound: dict[str, Any]) -> None:
    manifest = Manifest.model_validate(sound)
    assert manifest.stage("head").graph == "head.onnx"
    assert manifest.dimension("wordiness").needs_prompt
    assert manifest.roots("head") == {"image", "prompt"}
    assert Manifest.model_validate_json(manifest.model_dump_json()) == manifest
    for look in (manifest.stage, manifest.dimension):
        with pytest.raises(KeyError):
            look("none")


@pytest.mark.parametrize("name", BROKEN)
def test_is_refused(sound: dict[str, Any], name: str) -> None:
    change, words = BROKEN[name]
    manifest = copy.deepcopy(sound)
    change(manifest)
    with pytest.raises(ValidationError) as refusal:
        Manifest.model_validate_json(json.dumps(manifest))
    assert words in str(refusal.value)


def test_reading_names_the_file_and_the_place(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path)
    edit_manifest(directory, version="1 2")
    with pytest.raises(BrokenBundle, match=r"manifest\.json is not a valid manifest: version"):
        read_manifest(directory)
    (directory / "manifest.json").write_bytes(b"\xff{")
    with pytest.raises(BrokenBundle, match="not a valid manifest"):
        read_manifest(directory)
    (directory / "manifest.json").unlink()
    with pytest.raises(BrokenBundle, match="cannot be read"):
        read_manifest(directory)
