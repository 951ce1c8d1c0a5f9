"""The recipe from pictures to a bundle that ranks: small, on drawn pictures, without the network."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from critiq_exporters.training.bundle import BundleScorer
from critiq_exporters.training.cli import app
from critiq_exporters.training.degradations import degrade
from critiq_exporters.training.golden import drawings
from critiq_server.bundles.manifest import GOLDEN_FILE, Manifest
from tests.exporters.training.fakes import make_data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("recipe")
    data = make_data(root / "data")
    arguments = ["builtin", "--data", str(data), "--out", str(root / "bundle"), "--quick", "--visual-only"]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return root, root / "bundle"


@pytest.mark.slow
def test_clean_ranks_above_spoilt(run: tuple[Path, Path]) -> None:
    scorer = BundleScorer(run[1])
    wins = []
    for seed in (901, 902, 903):
        for index in (1, 3, 5):
            picture = drawings(seed)[index]
            clean = scorer.score(picture, None)["visual_quality"]
            for family in ("gaussian_blur", "white_noise", "jpeg"):
                spoilt = degrade(picture, family, 5, np.random.default_rng(seed))
                wins.append(clean > scorer.score(spoilt, None)["visual_quality"])
    assert np.mean(wins) >= 0.8


@pytest.mark.slow
def test_the_manifest_names_every_file_with_its_digest(run: tuple[Path, Path]) -> None:
    bundle = run[1]
    manifest = Manifest.model_validate_json((bundle / "manifest.json").read_text("utf-8"))
    files = {path.name for path in bundle.iterdir()} - {"manifest.json"}
    assert set(manifest.files) == files
    for name, digest in manifest.files.items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest
    assert all(item.calibration and item.reference for item in manifest.dimensions)


@pytest.mark.slow
def test_the_graphs_tell_nothing_of_the_machine(run: tuple[Path, Path]) -> None:
    for graph in run[1].glob("*.onnx"):
        assert str(Path(__file__).parents[3]).encode() not in graph.read_bytes()


@pytest.mark.slow
def test_the_golden_file_replays(run: tuple[Path, Path]) -> None:
    bundle = run[1]
    scorer = BundleScorer(bundle)
    with np.load(bundle / GOLDEN_FILE, allow_pickle=False) as golden:
        for index, (prompt, row) in enumerate(zip(golden["prompts"], golden["expected"], strict=True)):
            found = scorer.score(golden[f"image_{index}"], str(prompt))
            expected = dict(zip(golden["dimensions"].tolist(), row.tolist(), strict=True))
            assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_resume_reuses_what_was_trained(run: tuple[Path, Path]) -> None:
    root, bundle = run
    checkpoint = root / "bundle.work" / "visual.safetensors"
    before = (checkpoint.stat().st_mtime_ns, (bundle / GOLDEN_FILE).read_bytes())
    arguments = ["--data", str(root / "data"), "--out", str(bundle), "--quick", "--visual-only", "--resume"]
    assert CliRunner().invoke(app, ["builtin", *arguments], catch_exceptions=False).exit_code == 0
    assert checkpoint.stat().st_mtime_ns == before[0]
    with np.load(bundle / GOLDEN_FILE, allow_pickle=False) as golden:
        assert np.isfinite(golden["expected"]).all()


def test_missing_data_is_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["builtin", "--data", str(tmp_path), "--out", str(tmp_path / "b"), "--quick"])
    assert isinstance(result.exception, FileNotFoundError)
