"""From modules to published bundles: what passes, what is refused, and that nothing half-written stays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from critiq_exporters.core.evaluate import evaluate, open_tokenizers, torch_run
from critiq_exporters.core.export import Exported, Settings, export
from critiq_exporters.core.gates import VariantLimits
from critiq_exporters.core.graphs import ExportError
from critiq_exporters.core.pictures import drawn_pictures, prompts
from critiq_exporters.core.precisions import Precision
from critiq_exporters.core.report import read_report
from critiq_exporters.core.verify import verify
from critiq_server.bundles.model import BrokenBundle, compute_raw, load_model
from critiq_server.bundles.repository import find_bundles
from critiq_server.runtime.onnx import RuntimeSettings
from tests.exporters.core.small import Head, small_model

CPU = RuntimeSettings(provider="cpu")


def settings(out: Path, *precisions: Precision, limits: VariantLimits | None = None) -> Settings:
    return Settings(
        out=out,
        name="small",
        version="1",
        checkpoint_sha256="0" * 64,
        command="tests",
        precisions=precisions or ("fp32",),
        picture_count=12,
        limits=limits or VariantLimits(),
    )


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    folder = tmp_path_factory.mktemp("small")
    return export(small_model(folder), settings(folder / "models", "fp32", "fp16", "int8"))


def test_every_precision_becomes_a_model_of_its_own(exported: Exported) -> None:
    root = exported.places["fp32"].parent.parent
    assert {name: list(versions) for name, versions in find_bundles([root]).items()} == {
        "small": ["1"],
        "small-fp16": ["1"],
        "small-int8": ["1"],
    }
    assert not list(root.rglob(".*"))
    for place in exported.places.values():
        load_model(place, CPU)  # digests and golden records


def test_the_bundle_gives_torchs_scores(exported: Exported, tmp_path: Path) -> None:
    model = small_model(tmp_path)
    pictures, texts = drawn_pictures(20)[12:], prompts(8)
    eager = evaluate(
        model.stages, open_tokenizers(model.tokenizers, tmp_path), torch_run(model.modules), pictures, texts, batch=8
    )
    found = compute_raw(load_model(exported.places["fp32"], CPU), pictures, texts, ["quality", "match"])
    np.testing.assert_allclose(found[:, 0], eager.raw(model.dimensions[0]), atol=1e-5)
    np.testing.assert_allclose(found[:, 1], eager.raw(model.dimensions[1]), atol=1e-5)


def test_int8_rides_alone(exported: Exported) -> None:
    """The scale of an activation is that of its whole batch: beside others a picture would get another score."""
    assert [stage.max_batch for stage in load_model(exported.places["int8"], CPU).manifest.stages] == [1, 1]
    assert [stage.max_batch for stage in load_model(exported.places["fp16"], CPU).manifest.stages] == [6, 6]


def test_reduced_precisions_are_smaller_and_nearly_the_same(exported: Exported) -> None:
    full, half, byte = exported.report.precisions
    assert half.graph_bytes["encoder"] < 0.6 * full.graph_bytes["encoder"]
    assert byte.graph_bytes["encoder"] < 0.4 * full.graph_bytes["encoder"]
    assert half.drift["encoder"]
    assert 0 < max(item.error for item in half.drift["encoder"]) < max(item.error for item in byte.drift["encoder"])


def test_the_report_tells_every_gate(exported: Exported) -> None:
    for place in exported.places.values():
        assert read_report(place) == exported.report
        text = (place / "export_report.md").read_text()
        assert [f"stage head, batch {size}, against torch" in text for size in (1, 2, 3, 6)] == [True] * 4
        assert "**failed**" not in text


def test_graphs_say_nothing_about_the_machine_that_made_them(exported: Exported) -> None:
    for graph in exported.places["fp32"].glob("*.onnx"):
        assert str(Path(__file__).parents[3]).encode() not in graph.read_bytes()
        assert onnx.load(str(graph)).opset_import[0].version == 20


def test_a_precision_that_fails_is_not_written(tmp_path: Path) -> None:
    strict = settings(tmp_path / "models", "int8", limits=VariantLimits(shift=1e-9))
    outcome = export(small_model(tmp_path), strict)
    assert list(outcome.places) == ["fp32"]
    assert {path.name for path in (tmp_path / "models").iterdir()} == {"small"}
    refused = read_report(outcome.places["fp32"]).precisions[1]
    assert not refused.passed
    assert refused.drift["encoder"][0].layer in {"first", "second"}


def test_numbers_beyond_half_precision_are_refused(tmp_path: Path) -> None:
    outcome = export(small_model(tmp_path, gain=2.0**17), settings(tmp_path / "models", "fp16"))
    assert list(outcome.places) == ["fp32"]
    failed = [gate for gate in outcome.report.precisions[1].gates if not gate.passed]
    assert [gate.name for gate in failed] == ["stage encoder, largest activation in fp32"]


class Stateful(Head):
    """Gives another answer in Python than in the graph."""

    def forward(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        match = super().forward(features, ids, mask)
        return match if torch.compiler.is_exporting() else match + 0.01


def test_a_graph_that_disagrees_with_torch_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"do not compute what torch computes(.|\n)*stage head, batch 1"):
        export(small_model(tmp_path, head=Stateful()), settings(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


class Untraceable(Head):
    """Decides by the values."""

    def forward(self, features: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        match = super().forward(features, ids, mask)
        return match if float(match.sum()) > 0 else -match


def test_a_module_that_cannot_be_traced_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="stage 'head' cannot be exported"):
        export(small_model(tmp_path, head=Untraceable()), settings(tmp_path / "models"))
    assert not (tmp_path / "models").exists()


def test_a_version_that_exists_is_not_touched(exported: Exported, tmp_path: Path) -> None:
    place = exported.places["fp32"]
    before = {path.name: path.stat().st_mtime_ns for path in place.iterdir()}
    with pytest.raises(ExportError, match="exists; bundles are immutable"):
        export(small_model(tmp_path), settings(place.parent.parent))
    assert {path.name: path.stat().st_mtime_ns for path in place.iterdir()} == before


def test_verify_repeats_the_gates(exported: Exported, tmp_path: Path) -> None:
    pictures = drawn_pictures(6)
    model = small_model(tmp_path)
    gates = verify(exported.places["fp32"], pictures, build=lambda: model)
    assert all(gate.passed for gate in gates)
    assert [gate.name for gate in gates if "against torch" in gate.name]
    gates = verify(exported.places["int8"], pictures, reference=exported.places["fp32"])
    assert all(gate.passed for gate in gates)


def test_verify_finds_another_networks_bundle(exported: Exported, tmp_path: Path) -> None:
    other = small_model(tmp_path)
    with torch.no_grad():
        encoder = other.modules["encoder"]
        assert isinstance(encoder, nn.Module)
        next(encoder.parameters()).mul_(1.01)
    gates = verify(exported.places["fp32"], drawn_pictures(4), build=lambda: other)
    assert not all(gate.passed for gate in gates)


def test_verify_refuses_an_altered_bundle(exported: Exported, tmp_path: Path) -> None:
    changed = export(small_model(tmp_path), replace(settings(tmp_path / "models"))).places["fp32"]
    with (changed / "head.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(BrokenBundle, match=r"head\.onnx has SHA-256"):
        verify(changed, drawn_pictures(4))
