"""Engines for TensorRT: built, held against the graphs, chosen by GPU and version; over a stand-in for TensorRT."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from critiq_exporters.cli import main
from critiq_exporters.core.bundle import sha256
from critiq_exporters.core.tensorrt_build import Range, ranges, readable, shapes_of
from critiq_server.bundles.model import compute_raw, load_model, read_manifest
from critiq_server.bundles.repository import BUILTIN
from critiq_server.runtime import tensorrt_engine
from critiq_server.runtime.onnx import ProviderUnavailable, RuntimeSettings
from tests.exporters.families.conftest import Exported
from tests.support import tensorrt as stand_in

ENGINE = RuntimeSettings(provider="engine")
BUILTIN_BUNDLE = next(BUILTIN.rglob("manifest.json")).parent


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with TensorRT and a GPU of compute capability 9.0, as far as critiq can tell."""
    _gpu(monkeypatch, "9.0")


def _gpu(monkeypatch: pytest.MonkeyPatch, capability: str) -> None:
    monkeypatch.setattr(tensorrt_engine, "import_tensorrt", lambda: stand_in)
    monkeypatch.setattr(tensorrt_engine, "compute_capability", lambda device=0: capability)
    monkeypatch.setattr(tensorrt_engine, "_memory", lambda: stand_in.HostMemory)
    monkeypatch.setattr("critiq_exporters.core.tensorrt_export.import_tensorrt", lambda: stand_in)
    monkeypatch.setattr("critiq_exporters.core.tensorrt_export.compute_capability", lambda device=0: capability)


@pytest.fixture
def bundle(tiny_export: Exported) -> Path:
    return tiny_export.models / "my-maniqa" / "7"


def with_engines(bundle: Path, out: Path, *more: str) -> Path:
    assert main(["tensorrt", str(bundle), "--out", str(out), "--count", "4", *more]) == 0
    return out / "my-maniqa" / "7-sm90"


@pytest.mark.usefixtures("gpu")
def test_a_bundle_with_engines_scores_as_its_graphs_do(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "timing"
    built = with_engines(bundle, tmp_path / "out", "--timing-cache", str(cache))
    assert "passed: stage tower, batch 3, against onnxruntime" in capsys.readouterr().out
    assert cache.read_bytes() == b"timed;"
    (engine,) = read_manifest(built).stages[0].engines
    assert engine.file == "tower-sm90-trt10.13.3.plan"
    pictures = [np.random.default_rng(seed).integers(0, 256, (90, 70, 3), np.uint8) for seed in range(3)]
    by_engine, by_graph = load_model(built, ENGINE), load_model(bundle, RuntimeSettings(provider="cpu"))
    assert by_engine.stages["tower"].runtime.provider == "TensorRT"
    assert by_engine.stages["tower"].digest == by_graph.stages["tower"].digest
    scores = [compute_raw(model, pictures, [""] * 3, ["visual_quality"]) for model in (by_engine, by_graph)]
    np.testing.assert_allclose(*scores, atol=1e-5)
    # Where engines are not asked for by name they are still preferred.
    assert load_model(built, RuntimeSettings()).stages["tower"].runtime.provider == "TensorRT"


def test_engines_of_another_machine_are_refused_by_name(
    bundle: Path, tmp_path: Path, gpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = with_engines(bundle, tmp_path / "out")
    _gpu(monkeypatch, "8.9")
    with pytest.raises(
        ProviderUnavailable, match=r"capability 9.0 with TensorRT 10.13.3; this machine .* 8.9 .*critiq"
    ):
        load_model(built, ENGINE)
    assert load_model(built, RuntimeSettings()).stages["tower"].runtime.provider == "CPUExecutionProvider"
    # The other machine adds its own, and keeps those that were there.
    assert main(["tensorrt", str(built), "--out", str(tmp_path / "out"), "--count", "4"]) == 0
    both = read_manifest(tmp_path / "out" / "my-maniqa" / "7-sm90-sm89")
    assert [entry.compute_capability for entry in both.stages[0].engines] == ["9.0", "8.9"]


@pytest.mark.usefixtures("gpu")
def test_what_tensorrt_cannot_read_is_listed_and_nothing_is_left(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stand_in, "unreadable", {"Softmax"})
    out = tmp_path / "out"
    assert main(["tensorrt", str(bundle), "--out", str(out)]) == 1
    assert "TensorRT cannot read tower.onnx:\n  no importer for operator Softmax" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.usefixtures("gpu")
def test_an_engine_that_computes_something_else_is_not_written(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compute = stand_in.Context._compute
    monkeypatch.setattr(
        stand_in.Context, "_compute", lambda self: {name: value * 1.01 for name, value in compute(self).items()}
    )
    out = tmp_path / "out"
    assert main(["tensorrt", str(bundle), "--out", str(out), "--count", "4"]) == 1
    assert "FAILED: stage tower" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.usefixtures("gpu")
def test_a_plan_that_is_none_is_refused(bundle: Path, tmp_path: Path) -> None:
    plan = tmp_path / "x.plan"
    plan.write_bytes(b"not an engine")
    with pytest.raises(ProviderUnavailable, match=r"does not take x.plan; build it again"):
        tensorrt_engine.EngineRuntime(plan, ["quality"], 0, stand_in, stand_in.HostMemory())


def test_a_machine_without_tensorrt_or_gpu_says_so(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(tensorrt_engine.importlib, "import_module", missing)
    assert main(["tensorrt", str(bundle), "--out", str(tmp_path / "out")]) == 1
    assert "TensorRT is not installed here" in capsys.readouterr().err
    monkeypatch.setattr(tensorrt_engine.ctypes, "CDLL", lambda name: (_ for _ in ()).throw(OSError("no libcuda")))
    with pytest.raises(ProviderUnavailable, match="no NVIDIA driver is installed"):
        tensorrt_engine.compute_capability()


def test_profiles_reach_as_far_as_batches_and_prompts() -> None:
    manifest = read_manifest(BUILTIN_BUNDLE)
    stages = {stage.name: stage for stage in manifest.stages}
    head = stages["alignment_head"]
    found = ranges(head, stages, manifest.tokenizers)
    assert found["batch"] == Range(1, head.max_batch // 2, head.max_batch)
    longest = next(iter(manifest.tokenizers.values())).max_length
    assert (found["length"].least, found["length"].most) == (8, longest)
    assert "length" not in ranges(stages["quality_encoder"], stages, manifest.tokenizers)
    shapes = shapes_of(BUILTIN_BUNDLE / "alignment_head.onnx", found)
    assert shapes["tokens"][2] == (head.max_batch, longest, 256)


def test_the_form_that_tensorrt_reads_computes_the_same(tmp_path: Path) -> None:
    changed = tmp_path / "bundle"
    shutil.copytree(BUILTIN_BUNDLE, changed)
    manifest = read_manifest(changed)
    for stage in manifest.stages:
        model = readable(changed / str(stage.graph))
        assert not any(entry.data_type == onnx.TensorProto.INT8 for entry in model.graph.initializer)
        onnx.save(model, str(changed / str(stage.graph)))
    (changed / "manifest.json").write_text(
        manifest.model_copy(
            update={"files": {name: sha256(changed / name) for name in manifest.files}}
        ).model_dump_json()
    )
    load_model(changed, RuntimeSettings(provider="cpu"))  # replays the golden records
