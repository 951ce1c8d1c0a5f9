"""ELIQ: the scoring module's arithmetic, and one bundle served three ways: computing, from a store, and refusing."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from critiq import AsyncClient, FeaturesMissing
from critiq.errors import InvalidArgument, Unavailable
from critiq_exporters.cli import main
from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.eliq.checkpoint import build
from critiq_exporters.families.eliq.network import Scorer, Shape
from critiq_server.app import App
from critiq_server.bundles.model import BrokenBundle, load_model, read_manifest
from critiq_server.runtime.lmm.base import Instruction
from critiq_server.runtime.lmm.folder import LmmUnavailable
from critiq_server.runtime.lmm.instructions import QUESTIONS, find_instructions
from critiq_server.runtime.lmm.pool import Lmms, open_extractor
from critiq_server.runtime.lmm.settings import LmmSettings
from critiq_server.runtime.onnx import RuntimeSettings
from tests.end_to_end.test_imports import modules_after
from tests.exporters.families.rule_made import rule_made
from tests.support.bundles import edit_manifest
from tests.support.lmms import QWEN_WIDTH, save_qwen
from tests.support.pooling import Answer, pooled, pooling_server, question_of
from tests.support.servers import make_settings, running
from tests.support.waiting import until

SHAPE = Shape(feature=QWEN_WIDTH, hidden=40, width=32, layers=2, heads=4)
PICTURES = drawn_pictures(7)[4:]  # not those of the golden records
PROMPTS = ["a green field", "two horses and a cart", "stripes"]


def small_state() -> dict[str, Tensor]:
    names = Scorer(SHAPE).state_dict()
    return {name: rule_made(name, tuple(value.shape)) * (10 if "quer" in name else 1) for name, value in names.items()}


@dataclass(frozen=True)
class Place:
    """What `critiq export eliq` made of a tiny scoring module and a tiny Qwen3-VL."""

    models: Path
    lmm: Path

    @property
    def bundle(self) -> Path:
        return self.models / "eliq" / "1"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("eliq")
    lmm = save_qwen(folder / "qwen")
    torch.save(small_state(), folder / "heads.pt")
    command = ["eliq", "--checkpoint", str(folder / "heads.pt"), "--out", str(folder / "models"), "--heads", "4"]
    command += ["--lmm", str(lmm), "--lmm-name", "tiny", "--lmm-dtype", "float32", "--max-pixels", "25600"]
    assert main([*command, "--record-features", "--count", "4", "--max-batch", "4"]) == 0
    return Place(folder / "models", lmm)


@asynccontextmanager
async def served(place: Place, **sections: Any) -> AsyncIterator[tuple[App, AsyncClient]]:
    settings = make_settings(place.models, default="eliq", **sections)
    async with running(settings) as app, AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
        yield app, client


def computing(place: Place) -> dict[str, Any]:
    return {"folders": {"tiny": place.lmm}, "device": "cpu"}


def expected_scores(place: Place) -> NDArray[np.float32]:
    """Straight through the extractor and torch, a row a picture."""
    lmm = next(stage.lmm for stage in read_manifest(place.bundle).stages if stage.lmm is not None)
    extractor = open_extractor(place.lmm, lmm.asked(), "cpu")
    features = torch.from_numpy(extractor.extract(PICTURES, PROMPTS, find_instructions(QUESTIONS["qwen3-vl"])))
    with torch.inference_mode():
        scores = build(small_state(), heads=4)(*features.unbind(1))
    return torch.stack(scores, 1).numpy()


def test_the_scoring_module_is_that_of_the_equations() -> None:
    """Equations 9 to 15 once more, in NumPy, for one picture."""
    state = {name: value.double().numpy() for name, value in small_state().items()}
    technical, aesthetic, alignment = (rule_made(name, (SHAPE.feature,)).double().numpy() * 50 for name in "abc")

    def linear(name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        product: NDArray[np.float64] = x @ state[f"{name}.weight"].T + state.get(f"{name}.bias", 0)
        return product

    def norm(name: str, x: NDArray[np.float64]) -> NDArray[np.float64]:
        scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        normed: NDArray[np.float64] = scaled * state[f"{name}.weight"] + state[f"{name}.bias"]
        return normed

    def gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
        return torch.nn.functional.gelu(torch.from_numpy(x)).numpy()

    both = np.concatenate([technical, aesthetic])
    gates = [1 / (1 + np.exp(-linear(f"fusion.{aspect}_gate", both))) for aspect in ("technical", "aesthetic")]
    mixed = np.concatenate([technical * gates[0], aesthetic * gates[1]])
    visual = linear("fusion.mix.2", gelu(linear("fusion.mix.0", mixed)))
    tokens = np.stack([np.concatenate([visual, alignment]), *state["queries"]])
    x = linear("project", tokens) + state["positions"]
    for number in range(SHAPE.layers):
        layer = f"layers.{number}"
        parts = linear(f"{layer}.query_key_value", norm(f"{layer}.attention_norm", x)).reshape(3, 3, SHAPE.heads, -1)
        heads = []
        for head in range(SHAPE.heads):
            query, key, value = parts[:, 0, head], parts[:, 1, head], parts[:, 2, head]
            weights = np.exp(query @ key.T / np.sqrt(query.shape[1]))
            heads.append(weights / weights.sum(1, keepdims=True) @ value)
        x = x + linear(f"{layer}.attention_output", np.concatenate(heads, 1))
        hidden = gelu(linear(f"{layer}.network.0", norm(f"{layer}.network_norm", x)))
        x = x + linear(f"{layer}.network.2", hidden)
    x = norm("norm", x)
    expected = [
        linear(f"{n}_head.2", gelu(linear(f"{n}_head.0", x[i])))[0] for i, n in ((1, "visual"), (2, "alignment"))
    ]
    inputs = [torch.from_numpy(feature).float()[None] for feature in (technical, aesthetic, alignment)]
    with torch.inference_mode():
        found = build(small_state(), heads=4)(*inputs)
    np.testing.assert_allclose([score.item() for score in found], expected, atol=1e-4)


async def test_one_bundle_computes_then_serves_its_store_and_else_refuses(place: Place, tmp_path: Path) -> None:
    expected = expected_scores(place)
    store = {"disk": {"path": tmp_path / "store"}}
    async with served(place, lmm=computing(place), features=store) as (app, client):
        stages = {stage.name: stage for stage in (await client.model("eliq")).stages}
        assert (stages["technical"].lmm, stages["technical"].on_miss) == ("tiny", "compute")
        assert stages["alignment"].instruction == "eliq-alignment-1"
        first = [await client.score(picture, prompt) for picture, prompt in zip(PICTURES, PROMPTS, strict=True)]
        np.testing.assert_allclose([[score.raw for score in result] for result in first], expected, atol=1e-3)
        other = await client.score(PICTURES[0], "another prompt")
        assert other["alignment"].raw != first[0]["alignment"].raw
        # 4 prompts about 3 pictures: technical and aesthetic quality were asked once a picture, and the questions
        # about one picture together.
        assert (batch_sizes(app, "sum"), batch_sizes(app, "count")) == (3 * 3 + 1, 4)
        with pytest.raises(InvalidArgument, match="needs the prompt"):
            await client.score(PICTURES[0])

    stored = {"disk": {"path": tmp_path / "store", "read_only": True}}
    async with served(place, lmm={"on_miss": "stored"}, features=stored) as (_, client):
        stages = {stage.name: stage for stage in (await client.model("eliq")).stages}
        assert (stages["technical"].provider, stages["technical"].on_miss) == ("stored features", "stored")
        again = [await client.score(picture, prompt) for picture, prompt in zip(PICTURES, PROMPTS, strict=True)]
        assert [[score.raw for score in result] for result in again] == [
            [score.raw for score in result] for result in first
        ]
        with pytest.raises(FeaturesMissing, match=r"lacks the features 'alignment' \(eliq-alignment-1\) of 'tiny'"):
            await client.score(PICTURES[0], "a prompt never seen")
        new = drawn_pictures(9)[8]
        with pytest.raises(FeaturesMissing, match=r"'technical' .*'aesthetic' .*'alignment'") as caught:
            await client.score(new, PROMPTS[0])
        assert "critiq features build" in str(caught.value)
        batch = await client.score_batch([(PICTURES[1], PROMPTS[1]), (new, PROMPTS[0])])
        assert [result.error is None for result in batch] == [True, False]


def batch_sizes(app: App, kind: str) -> float | None:
    """Of the queue to the LMM: their ``sum``, the questions asked, or their ``count``, the batches."""
    labels = {"model": "eliq", "stage": "technical"}
    return app.metrics.registry.get_sample_value(f"critiq_batch_size_{kind}", labels)


async def test_features_that_were_fetched_ahead_are_not_asked_again(place: Place) -> None:
    async with served(place, lmm=computing(place)) as (app, client):
        pairs = list(zip(PICTURES, PROMPTS, strict=True))
        assert (await client.prefetch(pairs)).accepted == 3
        fetched = {"model": "eliq", "code": "OK"}
        await until(lambda: app.metrics.registry.get_sample_value("critiq_prefetched_total", fetched) == 3)
        asked = batch_sizes(app, "sum")
        assert asked == 3 * 3
        found = [[score.raw for score in await client.score(*pair)] for pair in pairs]
        np.testing.assert_allclose(found, expected_scores(place), atol=1e-3)
        assert batch_sizes(app, "sum") == asked
        # Without a prompt, what can be asked without one.
        assert (await client.prefetch([drawn_pictures(9)[8]])).accepted == 1
        await until(lambda: app.metrics.registry.get_sample_value("critiq_prefetched_total", fetched) == 4)
        assert batch_sizes(app, "sum") == asked + 2


SERVE_STORED = """
import asyncio, json, sys
from pathlib import Path
from critiq_server.app import App
from critiq_server.images.source import RawImage
from critiq_server.queries import Query
from critiq_server.settings import load_settings
import numpy as np

async def main():
    flags = json.loads(sys.argv[1])
    app = App(load_settings(None, flags))
    await app.start()
    picture = np.load(sys.argv[2])
    result = await app.service.score(Query(RawImage(picture.tobytes(), picture.shape), sys.argv[3]))
    assert abs(result["visual_quality"].raw - float(sys.argv[4])) < 1e-6, result
    await app.stop(grace=1)

asyncio.run(main())
"""


async def test_a_warm_store_is_served_without_torch(place: Place, tmp_path: Path) -> None:
    async with served(place, lmm=computing(place), features={"disk": {"path": tmp_path / "store"}}) as (_, client):
        score = (await client.score(PICTURES[0], PROMPTS[0]))["visual_quality"].raw
    flags = {
        "server": {"rest_port": 0, "grpc_port": 0, "metrics_port": 0},
        "models": {"directories": [str(place.models)], "default": "eliq", "load": ["eliq"]},
        "features": {"disk": {"path": str(tmp_path / "store"), "read_only": True}},
        "lmm": {"on_miss": "stored"},
    }
    np.save(tmp_path / "picture.npy", PICTURES[0])
    modules = modules_after(SERVE_STORED, json.dumps(flags), str(tmp_path / "picture.npy"), PROMPTS[0], str(score))
    assert "onnxruntime" in modules
    assert not modules & {"torch", "transformers"}


def load(place: Place, bundle: Path | None = None, **settings: Any) -> None:
    lmms = Lmms(LmmSettings.model_validate(settings))
    load_model(bundle or place.bundle, RuntimeSettings(provider="cpu"), lmms).close()


def test_a_server_that_cannot_compute_says_what_to_do(place: Place, tmp_path: Path) -> None:
    with pytest.raises(LmmUnavailable, match=r"'tiny', and lmm\.folders names no folder of it \(it has none\)"):
        load(place)
    with pytest.raises(LmmUnavailable, match=r"has the fingerprint .*the bundle was made with"):
        load(place, folders={"tiny": save_qwen(tmp_path / "other", seed=1)}, device="cpu")
    load(place, **computing(place))


def test_an_lmm_that_answers_otherwise_than_at_export_is_refused(place: Place, tmp_path: Path) -> None:
    """The golden records hold the LMM's own features; a changed question gives others."""
    import shutil

    bundle = tmp_path / "bundle"
    shutil.copytree(place.bundle, bundle)
    stages = json.loads((bundle / "manifest.json").read_text())["stages"]
    stages[0]["lmm"]["text"] = "How many birds are there?"
    edit_manifest(bundle, stages=stages)
    with pytest.raises(BrokenBundle, match=r"stage 'technical': 'tiny' gives other features here .*cosine"):
        load(place, bundle, **computing(place))


def test_bad_checkpoints_and_options_are_refused(
    tmp_path: Path, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(state: Mapping[str, Tensor], *flags: str) -> str:
        torch.save(dict(state), tmp_path / "heads.pt")
        command = ["eliq", "--checkpoint", str(tmp_path / "heads.pt"), "--out", str(tmp_path / "out"), *flags]
        assert main(command) == 2
        return capsys.readouterr().err

    given = ["--lmm", str(place.lmm), "--heads", "4"]
    state = small_state()
    assert "--lmm FOLDER, or --lmm-revision" in refused(state, "--heads", "4")
    assert "32 cannot be cut into 5 attention heads" in refused(state, "--heads", "5")
    assert "has the fingerprint" in refused(state, *given, "--lmm-revision", "0" * 64)
    assert "needs --lmm FOLDER" in refused(state, "--heads", "4", "--lmm-revision", "0" * 64, "--record-features")
    assert "queries is [2, 3], should be [2, 96]" in refused({**state, "queries": torch.zeros(2, 3)}, *given)
    del state["layers.0.network.0.bias"]
    assert "missing: 1 parameters" in refused(state, *given)
    assert not (tmp_path / "out").exists()


def test_a_state_that_is_no_scoring_module_is_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2, 2)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="missing"):
        build(read_state(tmp_path / "other.pt"))


async def test_a_remote_lmm_is_asked_for_what_is_not_stored(place: Place) -> None:
    """The server asks over the pooling protocol; the other side computes with the same LMM."""
    lmm = next(stage.lmm for stage in read_manifest(place.bundle).stages if stage.lmm is not None)
    extractor = open_extractor(place.lmm, lmm.asked(), "cpu")
    broken = threading.Event()

    def compute(body: dict[str, Any], number: int) -> Answer:
        if broken.is_set():
            return 503, {"error": "restarting"}
        picture, text = question_of(body)
        return pooled(extractor.extract([picture], None, [Instruction("asked", text)])[0, 0])

    with pooling_server(compute) as remote:
        settings = {"on_miss": "remote", "remote": {"url": remote.url, "attempts": 1, "concurrency": 4}}
        async with served(place, lmm=settings) as (_, client):
            # Loading asked about the first golden record, three questions.
            assert len(remote.bodies) == 3
            results = [await client.score(picture, prompt) for picture, prompt in zip(PICTURES, PROMPTS, strict=True)]
            found = [[score.raw for score in result] for result in results]
            np.testing.assert_allclose(found, expected_scores(place), atol=1e-3)
            assert len(remote.bodies) == 3 + 3 * 3
            broken.set()
            with pytest.raises(Unavailable, match=r"it answered 503: .*restarting"):
                await client.score(PICTURES[0], "a new prompt", timeout=60)
            assert (await client.score(PICTURES[0], PROMPTS[0]))["alignment"].from_store
