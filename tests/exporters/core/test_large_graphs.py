"""Graphs whose weights do not fit into one protobuf message, with the limit of 2 GiB lowered for the tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from critiq_exporters.core import graphs
from critiq_exporters.core.export import Settings, export
from critiq_exporters.core.gates import VariantLimits
from critiq_exporters.core.precisions import Precision
from critiq_exporters.core.report import read_report
from critiq_server.bundles.model import BrokenBundle, load_model, read_manifest
from critiq_server.runtime.onnx import RuntimeSettings
from tests.exporters.core.small import Encoder, small_model

CPU = RuntimeSettings(provider="cpu")
WEIGHTS = "encoder.onnx.data"


def exported(folder: Path, version: str, *precisions: Precision, nudge: float = 0.0) -> Path:
    """The fp32 bundle of the small model, one weight moved by ``nudge``; those at other precisions lie beside it."""
    model = small_model(folder)
    encoder = model.modules["encoder"]
    assert isinstance(encoder, Encoder)
    with torch.no_grad():
        encoder.first.weight[0, 0] += nudge
    settings = Settings(
        out=folder / "models",
        name="small",
        version=version,
        checkpoint_sha256="0" * 64,
        command="tests",
        precisions=precisions,
        picture_count=8,
        limits=VariantLimits(srcc=0.5),
    )
    places = export(model, settings).places
    assert list(places) == ["fp32", *precisions]
    return places["fp32"]


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "LARGEST_MESSAGE", 30_000)


@pytest.mark.usefixtures("low_limit")
def test_many_weights_lie_beside_their_graph_and_are_checked(tmp_path: Path) -> None:
    place = exported(tmp_path, "1", "fp16", "int8")
    half, int8 = (place.parent.parent / f"small-{precision}" / "1" for precision in ("fp16", "int8"))
    for folder, beside in ((place, True), (half, True), (int8, False)):  # a quarter of the bytes fits
        assert (WEIGHTS in read_manifest(folder).files) == (folder / WEIGHTS).exists() == beside
        load_model(folder, CPU)  # digests and golden records
    assert (place / "encoder.onnx").stat().st_size < 30_000 < 4 * 16 * 16 * 3 * 32 <= (place / WEIGHTS).stat().st_size
    assert "head.onnx.data" not in read_manifest(place).files
    sizes = read_report(place).precisions[0].graph_bytes
    assert sizes["encoder"] >= (place / WEIGHTS).stat().st_size
    data = bytearray((place / WEIGHTS).read_bytes())
    data[100] ^= 1
    (place / WEIGHTS).write_bytes(data)
    with pytest.raises(BrokenBundle, match=f"{WEIGHTS} has SHA-256"):
        load_model(place, CPU)


@pytest.mark.usefixtures("low_limit")
def test_other_weights_give_features_another_name(tmp_path: Path) -> None:
    """A stage's outputs are named by the digest of its graph: were the weights left out of it, stores would mix up."""
    first, same, other = (
        load_model(exported(tmp_path, version, nudge=nudge), CPU)
        for version, nudge in (("1", 0.0), ("2", 0.0), ("3", 0.01))
    )
    assert first.stages["encoder"].digest == same.stages["encoder"].digest != other.stages["encoder"].digest
