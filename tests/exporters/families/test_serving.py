"""Exported bundles, served: `critiq serve --models DIR` answers over gRPC with what the network computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from critiq import Client
from critiq_exporters.cli import main
from critiq_exporters.core.checkpoints import read_state
from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.maniqa.checkpoint import build
from critiq_server.bundles.manifest import FiveCropsView, ResizeView
from critiq_server.images.views import apply_view
from tests.exporters.families.conftest import Exported
from tests.support.servers import server_process

WHOLE = ResizeView(height=64, width=64, filter="opencv_cubic")
FIVE_CROPS = FiveCropsView(height=64, width=64, shorter_min=64, shorter_max=1 << 16, filter="opencv_cubic")


def test_a_small_bundle_is_served_with_torchs_scores(tiny_export: Exported, tmp_path: Path) -> None:
    check_served(tiny_export.checkpoint, tiny_export.models, "my-maniqa", WHOLE, tmp_path / "log")


@pytest.mark.slow
def test_five_crops_are_averaged(tiny_checkpoint: Path, tmp_path: Path) -> None:
    command = ["maniqa", "--checkpoint", str(tiny_checkpoint), "--out", str(tmp_path / "models"), "--count", "4"]
    assert main([*command, "--max-batch", "2", "--evaluation", "five_crops"]) == 0
    check_served(tiny_checkpoint, tmp_path / "models", "maniqa", FIVE_CROPS, tmp_path / "log")


def check_served(checkpoint: Path, models: Path, name: str, view: ResizeView | FiveCropsView, log: Path) -> None:
    """Scores of a running server, one by one and as a batch, against torch on the same views."""
    pictures = drawn_pictures(8)[4:]  # not those of the golden records
    model = build(read_state(checkpoint), scale=0.8)
    with torch.inference_mode():
        expected = model(torch.from_numpy(np.stack([apply_view(picture, view) for picture in pictures])))
    flags = ["--models", str(models), "--default", name, "--load", name]
    with server_process(flags, log) as server, Client(server.grpc) as client:
        found = [client.score(picture)["visual_quality"] for picture in pictures]
        batch = [item.unwrap()["visual_quality"].raw for item in client.score_batch(reversed(pictures))]
    np.testing.assert_allclose([score.raw for score in found], expected, atol=1e-5)
    np.testing.assert_allclose(batch[::-1], expected, atol=1e-5)
    assert {(score.model, score.direction) for score in found} == {(name, "higher_is_better")}
    assert [score.calibrated for score in found] == pytest.approx([score.raw for score in found], abs=1e-4)
