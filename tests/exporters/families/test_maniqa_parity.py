"""MANIQA at full size against numbers of the authors' code: in torch, in the exported graph, and served.

Tolerances are those of the fixtures: float32 on a CPU, |difference| <= atol + rtol * |expected|.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from critiq import Client
from critiq_exporters.core.checkpoints import read_state
from critiq_exporters.core.evaluate import open_session
from critiq_exporters.core.export import Settings, export
from critiq_exporters.families.maniqa.checkpoint import build
from critiq_exporters.families.maniqa.family import load
from critiq_exporters.families.maniqa.network import Maniqa
from tests.exporters.families.rule_made import cut, fixture_arrays, needs_fixtures, published_state
from tests.support.servers import server_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), needs_fixtures]

OURS = {
    "vit.patch_embed": "vit.patches",
    "vit.blocks.0": "vit.blocks.0",
    "vit.blocks.6": "vit.blocks.6",
    "vit.blocks.9": "vit.blocks.9",
    "tablock1.0": "stage1.attention.0",
    "tablock1.1": "stage1.attention.1",
    "conv1": "stage1.reduce",
    "swintransformer1.layers.0.blocks.0": "stage1.layers.0.blocks.0",
    "swintransformer1.layers.0.blocks.1": "stage1.layers.0.blocks.1",
    "swintransformer1.layers.0": "stage1.layers.0",
    "swintransformer1": "stage1",
    "tablock2.1": "stage2.attention.1",
    "conv2": "stage2.reduce",
    "swintransformer2": "stage2",
    "fc_score": "score",
    "fc_weight": "weight",
}


@dataclass(frozen=True)
class FullSize:
    """The full-size checkpoint of the MANIQA fixture, and the folder of bundles exported from it."""

    checkpoint: Path
    models: Path


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> FullSize:
    folder = tmp_path_factory.mktemp("maniqa")
    checkpoint = folder / "published.pt"
    torch.save(published_state("maniqa"), checkpoint)
    settings = Settings(
        out=folder / "models",
        name="maniqa",
        version="1",
        checkpoint_sha256="0" * 64,
        command="tests",
        picture_count=4,
        max_batch=1,
        threads=2,
    )
    export(load(checkpoint), settings)
    return FullSize(checkpoint, folder / "models")


@pytest.fixture(scope="module")
def model(full_size: FullSize) -> Maniqa:
    return build(read_state(full_size.checkpoint), scale=0.8)


@pytest.fixture(scope="module")
def session(full_size: FullSize) -> Any:
    """The bundle's graph, which also gives the scores and weights of the positions."""
    graph = onnx.load(str(full_size.models / "maniqa" / "1" / "tower.onnx"))
    # What the last linear layers of the two branches give: a ReLU makes a score of it, a sigmoid a weight.
    relus, sigmoids = (
        [node.output[0] for node in graph.graph.node if node.op_type == kind] for kind in ("Relu", "Sigmoid")
    )
    graph.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in (relus[-2], sigmoids[-1]))
    return open_session(graph.SerializeToString(), threads=1)


def pictures(batch: int) -> tuple[NDArray[np.uint8], NDArray[np.intp]]:
    """The fixture's two pictures in turns, and which of the two each is."""
    rows = np.arange(batch) % 2
    return fixture_arrays("maniqa", "inputs")["image_u8"][rows], rows


def test_the_network_sees_the_authors_input() -> None:
    """The pixels that are normalised inside the graph are those that the authors' code fed to theirs."""
    inputs = fixture_arrays("maniqa", "inputs")
    pixels = torch.from_numpy(inputs["image_u8"]).permute(0, 3, 1, 2).to(torch.float32)
    assert torch.equal((pixels / 255 - 0.5) / 0.5, torch.from_numpy(inputs["x"]))


def test_activations_agree_with_the_authors_code(model: Maniqa) -> None:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[name] = output

        return hook

    modules = dict(model.tower.named_modules())
    hooks = [modules[ours].register_forward_hook(keep(theirs)) for theirs, ours in OURS.items()]
    expected = fixture_arrays("maniqa", "expected")
    with torch.inference_mode():
        score = model(torch.from_numpy(pictures(2)[0]))
    for hook in hooks:
        hook.remove()
    np.testing.assert_allclose(score, expected["score"], atol=1e-6, rtol=1e-5)
    compared = set()
    for key, wanted in expected.items():
        if key.startswith("act."):
            name, _, part = key.removeprefix("act.").partition("[")
            atol = 2e-4 if name.startswith("tablock") else 5e-5
            found = as_theirs(name, seen[name])
            np.testing.assert_allclose(found[cut(part)] if part else found, wanted, atol=atol, rtol=1e-4, err_msg=key)
            compared.add(name)
    assert compared == set(OURS)


def as_theirs(name: str, activation: Tensor) -> NDArray[np.float32]:
    """In the layout of the authors' module."""
    if name == "vit.patch_embed":
        return activation.flatten(2).transpose(1, 2).numpy()
    if name in ("swintransformer1", "swintransformer2"):
        return torch.unflatten(activation, 2, (28, 28)).numpy()
    return activation.numpy()


@pytest.mark.parametrize("batch", [1, 5])
def test_torch_gives_the_authors_scores_at_any_batch(model: Maniqa, batch: int) -> None:
    images, rows = pictures(batch)
    with torch.inference_mode():
        found = model(torch.from_numpy(images))
    np.testing.assert_allclose(found, fixture_arrays("maniqa", "expected")["score"][rows], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_the_exported_graph_gives_the_authors_numbers_at_any_batch(session: Any, batch: int) -> None:
    images, rows = pictures(batch)
    expected = fixture_arrays("maniqa", "expected")
    score, scores, weights = session.run(None, {"image": images})
    np.testing.assert_allclose(score, expected["score"][rows], atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(scores, expected["act.fc_score"][rows], atol=5e-5, rtol=1e-4)
    np.testing.assert_allclose(weights, expected["act.fc_weight"][rows], atol=5e-5, rtol=1e-4)


def test_the_bundle_serves_the_authors_scores(full_size: FullSize, tmp_path: Path) -> None:
    flags = ["--models", str(full_size.models), "--default", "maniqa", "--load", "maniqa"]
    pictures = fixture_arrays("maniqa", "inputs")["image_u8"]
    with (
        server_process(flags, tmp_path / "log", ready_within=180) as server,
        Client(server.grpc, timeout=120) as client,
    ):
        found = [client.score(picture)["visual_quality"].raw for picture in pictures]
    np.testing.assert_allclose(found, fixture_arrays("maniqa", "expected")["score"], atol=1e-6, rtol=1e-5)
