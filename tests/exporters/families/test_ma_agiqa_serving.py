"""MA-AGIQA served: two questions to mPLUG-Owl2 and the tower, then from the store, then with the fallback alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from critiq import AsyncClient, FeaturesMissing
from critiq_exporters.cli import main
from critiq_exporters.core.checkpoints import read_state
from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.ma_agiqa.checkpoint import build
from critiq_exporters.families.maniqa import checkpoint as maniqa
from critiq_server.app import App
from critiq_server.bundles.manifest import ResizeView
from critiq_server.bundles.model import read_manifest
from critiq_server.images.views import apply_view
from critiq_server.runtime.lmm.instructions import QUESTIONS, find_instructions
from critiq_server.runtime.lmm.pool import open_extractor
from tests.exporters.families.rule_made import tiny_state
from tests.exporters.families.test_ma_agiqa import WIDTH, small_state
from tests.support.lmms import OWL_WIDTH, save_owl
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.slow

PICTURES = drawn_pictures(8)[4:]  # not those of the golden records
VIEW = ResizeView(height=64, width=64, filter="opencv_cubic")


@dataclass(frozen=True)
class Place:
    """What `critiq export ma-agiqa` made of a tiny checkpoint, a tiny mPLUG-Owl2 and, as fallback, a tiny MANIQA."""

    models: Path
    checkpoint: Path
    fallback: Path
    lmm: Path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("ma_agiqa")
    place = Place(folder / "models", folder / "published.pt", folder / "maniqa.pt", save_owl(folder / "owl"))
    state = small_state()
    for name in ("fc4096_784_a2.0.weight", "fc4096_784_b2.0.weight", "fc4096_784_a"):
        if name in state:  # as wide as the tiny LMM
            state[name] = torch.cat([state[name]] * (OWL_WIDTH // WIDTH), dim=1)
    torch.save(state, place.checkpoint)
    torch.save(tiny_state(), place.fallback)
    command = ["ma-agiqa", "--checkpoint", str(place.checkpoint), "--out", str(place.models), "--count", "4"]
    command += ["--lmm", str(place.lmm), "--lmm-name", "owl", "--lmm-dtype", "float32", "--max-batch", "2"]
    assert main([*command, "--record-features", "--fallback", str(place.fallback)]) == 0
    return place


@asynccontextmanager
async def served(place: Place, **sections: Any) -> AsyncIterator[tuple[App, AsyncClient]]:
    settings = make_settings(place.models, default="ma-agiqa", **sections)
    async with running(settings) as app, AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
        yield app, client


def expected_scores(place: Place) -> Any:
    manifest = read_manifest(place.models / "ma-agiqa" / "1")
    lmm = next(stage.lmm for stage in manifest.stages if stage.lmm is not None)
    features = open_extractor(place.lmm, lmm.asked(), "cpu").extract(
        PICTURES, None, find_instructions(QUESTIONS["mplug-owl2"])
    )
    networks = build(read_state(place.checkpoint))
    with torch.inference_mode():
        votes = networks.votes(torch.from_numpy(np.stack([apply_view(picture, VIEW) for picture in PICTURES])))
        return networks.fusion(votes, *torch.from_numpy(features).unbind(1)).numpy()


async def test_features_are_computed_stored_and_else_done_without(place: Place, tmp_path: Path) -> None:
    expected = expected_scores(place)
    disk = {"path": tmp_path / "store"}
    lmm = {"folders": {"owl": place.lmm}, "device": "cpu"}
    async with served(place, lmm=lmm, features={"disk": disk}) as (_, client):
        results = [await client.score(picture) for picture in PICTURES[:3]]
        np.testing.assert_allclose([score.raw for result in results for score in result], expected[:3], atol=1e-4)
        assert not any(result["visual_quality"].degraded for result in results)

    with torch.inference_mode():
        seen = torch.from_numpy(np.stack([apply_view(picture, VIEW) for picture in PICTURES]))
        instead = maniqa.build(read_state(place.fallback), scale=0.8)(seen).numpy()
    async with served(place, lmm={"on_miss": "stored"}, features={"disk": {**disk, "read_only": True}}) as (
        app,
        client,
    ):
        model = await client.model("ma-agiqa")
        assert model.dimensions[0].has_fallback
        assert {stage.on_miss for stage in model.stages} == {"", "stored"}
        again = [await client.score(picture) for picture in PICTURES[:3]]
        assert [result["visual_quality"].raw for result in again] == [r["visual_quality"].raw for r in results]

        degraded = (await client.score(PICTURES[3]))["visual_quality"]
        assert degraded.degraded
        assert degraded.raw == pytest.approx(instead[3], abs=1e-5)
        assert (degraded.calibrated, degraded.percentile) == (pytest.approx(instead[3], abs=1e-4), None)
        assert "'semantic' (ma-agiqa-semantic), 'coherence' (ma-agiqa-coherence)" in degraded.degraded_reason
        counted = app.metrics.registry.get_sample_value(
            "critiq_degraded_total", {"model": "ma-agiqa", "dimension": "visual_quality"}
        )
        assert counted == 1

        ranking = (await client.rank(PICTURES)).ranking
        assert [entry.index for entry in ranking[:3]] == list(np.argsort(-expected[:3], kind="stable"))
        assert isinstance(ranking[3].error, FeaturesMissing)
        assert "cannot be compared with full ones" in str(ranking[3].error)
        with pytest.raises(FeaturesMissing, match="cannot be compared"):
            await client.compare(PICTURES[0], PICTURES[3])


async def test_all_degraded_pictures_are_ranked_among_themselves(place: Place) -> None:
    async with served(place, lmm={"on_miss": "stored"}) as (_, client):
        ranking = (await client.rank(PICTURES)).ranking
        assert [entry.rank for entry in ranking] == [1, 2, 3, 4]
        assert all(entry.score is not None and entry.score.degraded for entry in ranking)


async def test_a_remote_lmm_that_is_gone_is_done_without(place: Place) -> None:
    """The bundle is served although its LMM's features could not be checked."""
    nobody = {"on_miss": "remote", "remote": {"url": "http://127.0.0.1:9", "attempts": 1}}
    async with served(place, lmm=nobody) as (_, client):
        score = (await client.score(PICTURES[0]))["visual_quality"]
        assert score.degraded
        assert "http://127.0.0.1:9 failed 1 times" in score.degraded_reason
