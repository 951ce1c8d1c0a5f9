"""A bundle that is not what its manifest says is never loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from critiq_server.bundles.model import BrokenBundle, LoadedModel, compute_raw, load_model
from critiq_server.bundles.repository import find_bundles, version_order
from critiq_server.runtime.onnx import ProviderUnavailable, RuntimeSettings
from tests.support.bundles import edit_manifest, write_bundle, write_simulated

CPU = RuntimeSettings(provider="cpu")


def rewrite(directory: Path, name: str, data: bytes) -> None:
    """Puts another file in place and its digest into the manifest: a bundle wrong from the start."""
    (directory / name).write_bytes(data)
    files = json.loads((directory / "manifest.json").read_text())["files"]
    edit_manifest(directory, files={**files, name: hashlib.sha256(data).hexdigest()})


def record(directory: Path, **changes: Any) -> None:
    """Rewrites the golden record."""
    with np.load(directory / "golden.npz") as golden:
        arrays = {**golden, **changes}
    np.savez(directory / "golden.npz", **arrays)
    rewrite(directory, "golden.npz", (directory / "golden.npz").read_bytes())


def refused(directory: Path) -> str:
    with pytest.raises(BrokenBundle) as refusal:
        load_model(directory, CPU)
    return str(refusal.value)


def graph(inputs: dict[str, list[Any]], outputs: dict[str, list[Any]], nodes: list[onnx.NodeProto]) -> bytes:
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return bytes(model.SerializeToString())


def test_a_sound_bundle_computes_what_it_should(tmp_path: Path) -> None:
    model = load_model(write_bundle(tmp_path), CPU)
    pictures = [np.full((20, 30, 3), level, np.uint8) for level in (51, 102)]
    values = compute_raw(model, pictures, ["a cat", "a red red red house"], ["brightness", "wordiness"])
    np.testing.assert_allclose(values, [[0.2, 0.8], [0.4, 2.8]], rtol=1e-5)


@pytest.mark.parametrize("name", ["image.onnx", "tokenizer.json", "golden.npz"])
def test_an_altered_file(tmp_path: Path, name: str) -> None:
    directory = write_bundle(tmp_path)
    data = bytearray((directory / name).read_bytes())
    data[len(data) // 2] ^= 1
    (directory / name).write_bytes(data)
    assert name in refused(directory)
    assert "altered" in refused(directory)


@pytest.mark.parametrize("name", ["head.onnx", "tokenizer.json", "golden.npz"])
def test_a_missing_file(tmp_path: Path, name: str) -> None:
    directory = write_bundle(tmp_path)
    (directory / name).unlink()
    assert f"{name} cannot be read" in refused(directory)


def test_a_golden_record_that_disagrees(tmp_path: Path) -> None:
    words = refused(write_bundle(tmp_path, expected_shift=0.01))
    assert "golden record" in words
    assert "brightness" in words
    assert "tolerance" in words
    load_model(write_bundle(tmp_path, version="2", expected_shift=5e-6), CPU)


def test_not_a_number_never_passes(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path)
    record(directory, expected=np.full((3, 2), np.nan))
    assert "nan" in refused(directory)


@pytest.mark.parametrize(
    "changes",
    [
        {"dimensions": np.array(["brightness", "beauty"])},
        {"expected": np.zeros((2, 2))},
        {"expected": np.zeros((3, 1))},
        {"image_1": np.zeros((20, 30), np.uint8)},
        {"prompts": np.array(["a"] * 9)},
        {"prompts": np.array([], "U1")},
        {"dimensions": np.array([], "U1")},
        {"prompts": np.array([{"an": "object"}], object)},
    ],
)
def test_a_golden_record_that_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    directory = write_bundle(tmp_path)
    record(directory, **changes)
    assert "golden" in refused(directory)


@pytest.mark.parametrize("data", [b"", b"PK\3\4 not a zip", b"\x93NUMPY"])
def test_a_golden_file_that_is_none(tmp_path: Path, data: bytes) -> None:
    directory = write_bundle(tmp_path)
    rewrite(directory, "golden.npz", data)
    assert "golden" in refused(directory)


@pytest.mark.parametrize("name", ["image.onnx", "tokenizer.json"])
@pytest.mark.parametrize("data", [b"", b"{}", b"neither a graph nor a tokenizer"])
def test_a_file_that_is_something_else(tmp_path: Path, name: str, data: bytes) -> None:
    directory = write_bundle(tmp_path)
    rewrite(directory, name, data)
    assert name in refused(directory)


def test_a_graph_with_other_inputs(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path)
    data = graph(
        {"brightness": ["b"], "words": ["b"]},
        {"wordiness": ["b"]},
        [helper.make_node("Mul", ["brightness", "words"], ["wordiness"])],
    )
    rewrite(directory, "head.onnx", data)
    words = refused(directory)
    assert "'head'" in words
    assert "['brightness', 'words']" in words
    assert "['brightness', 'count']" in words


def test_a_graph_with_other_outputs(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path)
    data = graph(
        {"brightness": ["b"], "count": ["b"]},
        {"product": ["b"]},
        [helper.make_node("Mul", ["brightness", "count"], ["product"])],
    )
    rewrite(directory, "head.onnx", data)
    assert "has no outputs ['wordiness']" in refused(directory)


def test_a_graph_that_fails_when_it_runs(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path)
    data = graph(
        {"brightness": ["b", 7], "count": ["b"]},
        {"wordiness": ["b", 7]},
        [helper.make_node("Mul", ["brightness", "count"], ["wordiness"])],
    )
    rewrite(directory, "head.onnx", data)
    assert "golden" in refused(directory)


def test_an_output_with_more_than_one_value(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path)
    nodes = [
        helper.make_node("Mul", ["brightness", "count"], ["product"]),
        helper.make_node("Concat", ["product", "product"], ["wordiness"], axis=0),
    ]
    rewrite(directory, "head.onnx", graph({"brightness": ["b"], "count": ["b"]}, {"wordiness": ["c"]}, nodes))
    assert "golden" in refused(directory)


def test_a_provider_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ProviderUnavailable, match="asked for"):
        load_model(write_bundle(tmp_path), RuntimeSettings(provider="cuda"))


def digests(model: LoadedModel) -> dict[str, str]:
    return {name: stage.digest.hex() for name, stage in model.stages.items()}


def test_a_stage_digest_says_what_the_stage_computes(tmp_path: Path) -> None:
    one = digests(load_model(write_bundle(tmp_path), CPU))
    assert one == digests(load_model(write_bundle(tmp_path, name="copy", version="2", max_batch=3), CPU))
    other = digests(load_model(write_bundle(tmp_path, name="other", bias=0.5), CPU))
    assert other["image_encoder"] != one["image_encoder"]
    assert other["text_encoder"] == one["text_encoder"]
    assert len(set(one.values())) == 3


def test_a_digest_changes_with_the_view_and_the_tokenizer(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path)
    before = digests(load_model(directory, CPU))
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["stages"][0]["inputs"]["image"]["view"]["filter"] = "box"
    manifest["tokenizers"]["words"]["max_length"] = 12
    edit_manifest(directory, **manifest)
    after = digests(load_model(directory, CPU))
    assert after["image_encoder"] != before["image_encoder"]
    assert after["text_encoder"] != before["text_encoder"]
    assert after["head"] == before["head"]


@pytest.mark.parametrize(
    "versions",
    [
        ["1", "2", "10"],
        ["1.9", "1.10", "2.0"],
        ["0.9", "1.0-rc1", "1.0-rc2", "1.0", "1.0.1"],
        ["2024-12-31", "2025-01-02", "2025-01-10"],
        ["v1", "v2", "v10"],
    ],
)
def test_versions_are_ordered_as_people_read_them(versions: list[str]) -> None:
    backwards = versions[::-1]
    assert sorted(backwards, key=version_order) == versions


def test_bundles_are_found_and_the_first_directory_wins(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    wanted = write_bundle(ours)
    write_bundle(theirs)
    newer = write_bundle(theirs, version="10")
    write_bundle(theirs, version="9")
    alone = write_simulated(theirs / "simulated" / "1")
    unfinished = write_bundle(theirs, version="11")
    unfinished.rename(unfinished.with_name(".11"))
    broken = write_bundle(theirs, version="12")
    edit_manifest(broken, version="1 2")
    found = find_bundles([ours, theirs, tmp_path / "none"])
    assert list(found) == ["tiny"]
    assert list(found["tiny"]) == ["1", "9", "10"]
    assert found["tiny"]["1"].directory == wanted
    assert found["tiny"]["10"].directory == newer
    assert list(find_bundles([alone])) == ["simulated"], "a bundle itself may be named as a directory"
