"""MA-AGIQA: the fusion's arithmetic, the reader, and full size against numbers of the authors' code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.core.evaluate import open_session
from critiq_exporters.core.export import Settings, export
from critiq_exporters.core.graphs import write_graph
from critiq_exporters.families.ma_agiqa.checkpoint import Networks, build
from critiq_exporters.families.ma_agiqa.family import load
from critiq_exporters.families.maniqa.network import Maniqa
from critiq_server.bundles.manifest import ImageInput, ResizeView, Stage, StageInput
from critiq_server.bundles.model import compute_raw, load_model
from critiq_server.runtime.lmm.base import FEATURE
from critiq_server.runtime.onnx import RuntimeSettings
from tests.exporters.families.rule_made import (
    TINY,
    fixture_arrays,
    needs_fixtures,
    published_state,
    rule_made,
    tiny_state,
)

WIDTH, POSITIONS = 32, TINY.side**2
PICTURES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))


def small_state() -> dict[str, Tensor]:
    """A checkpoint in the published layout, with features of 32 numbers and some of what inference does not use."""
    shapes = {
        "fc784_784": (POSITIONS, POSITIONS),
        "fc4096_784_a2.0": (POSITIONS, WIDTH),
        "fc4096_784_b2.0": (POSITIONS, WIDTH),
        "gating": (3, 3 * POSITIONS),
        "output_fc": (1, POSITIONS),
        "fc4096_784_a": (POSITIONS, WIDTH),
        "fc39_784.0": (5, 39),
    }
    fusion = {f"{name}.weight": rule_made(f"{name}.weight", shape) for name, shape in shapes.items()}
    fusion |= {f"{name}.bias": rule_made(f"{name}.bias", shape[:1]) for name, shape in shapes.items()}
    return tiny_state() | fusion


def answers(seed: int) -> Tensor:
    return rule_made(f"answer {seed}", (3, WIDTH)) * 50


def fuse(networks: Networks, pixels: Tensor, semantic: Tensor, coherence: Tensor) -> Tensor:
    with torch.inference_mode():
        quality: Tensor = networks.fusion(networks.votes(pixels), semantic, coherence)
    return quality


def test_the_fusion_is_a_sum_of_experts_weighted_by_a_linear_gate() -> None:
    state = small_state()
    networks = build(state)
    semantic, coherence = answers(1), answers(2)
    votes = networks.votes(PICTURES).detach().numpy()

    def linear(name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
        product: NDArray[np.float32] = x @ state[f"{name}.weight"].numpy().T + state[f"{name}.bias"].numpy()
        return product

    first = np.maximum(linear("fc4096_784_a2.0", semantic.numpy()), 0)
    second = np.maximum(linear("fc4096_784_b2.0", coherence.numpy()), 0)
    third = linear("fc784_784", votes)
    gate = linear("gating", np.concatenate([first, second, third], axis=1))
    mixed = gate[:, :1] * first + gate[:, 1:2] * second + gate[:, 2:] * third
    expected = linear("output_fc", mixed)[:, 0]
    np.testing.assert_allclose(fuse(networks, PICTURES, semantic, coherence), expected, atol=1e-5)
    assert not np.allclose(fuse(networks, PICTURES, coherence, semantic), expected, atol=1e-3)


def test_the_tower_is_maniqas() -> None:
    networks = build(small_state())
    maniqa = Maniqa(TINY)
    maniqa.tower.load_state_dict(networks.votes.tower.state_dict())
    with torch.inference_mode():
        scores, weights = maniqa.eval().tower(PICTURES)
        assert torch.equal(networks.votes(PICTURES), scores * weights)


def test_features_in_half_precision_are_read_as_they_are_stored() -> None:
    networks = build(small_state())
    semantic, coherence = answers(1).half(), answers(2).half()
    expected = fuse(networks, PICTURES, semantic.float(), coherence.float())
    assert torch.equal(fuse(networks, PICTURES, semantic, coherence), expected)


def test_what_is_wrong_with_tower_and_fusion_comes_in_one_list() -> None:
    state = small_state()
    del state["gating.bias"], state["conv1.bias"]
    state["output_fc.weight"] = torch.zeros(1, 3)
    with pytest.raises(CheckpointError) as caught:
        build(state)
    for line in ("missing: 2 parameters", "    gating.bias", "    conv1.bias", "output_fc.weight is [1, 3]"):
        assert line in str(caught.value)


def test_a_maniqa_checkpoint_is_no_ma_agiqa() -> None:
    with pytest.raises(CheckpointError, match=r"missing: 10 parameters(.|\n)*fc784_784\.weight"):
        build(tiny_state())


def graphs(networks: Networks, pictures: NDArray[np.uint8], folder: Path) -> Callable[..., Any]:
    """Both parts exported: a function of pictures and answers that gives the quality by way of onnxruntime."""
    side, positions = pictures.shape[1], networks.fusion.picture.in_features
    view = ImageInput(view=ResizeView(height=side, width=side, filter="opencv_cubic"))
    tower = Stage(name="tower", graph="tower.onnx", inputs={"image": view}, outputs=["votes"])
    write_graph(networks.votes, tower, {"image": pictures[:2]}, folder / "tower.onnx")
    sources = {"votes": ("tower", "votes"), "semantic": ("semantic", FEATURE), "coherence": ("coherence", FEATURE)}
    inputs = {name: StageInput(stage=stage, output=output) for name, (stage, output) in sources.items()}
    fusion = Stage(name="fusion", graph="fusion.onnx", inputs=inputs, outputs=["quality"])
    example = {name: np.zeros((2, WIDTH), np.float16) for name in ("semantic", "coherence")}
    write_graph(
        networks.fusion, fusion, {"votes": np.zeros((2, positions), np.float32), **example}, folder / "fusion.onnx"
    )
    first, second = (open_session(folder / name, threads=2) for name in ("tower.onnx", "fusion.onnx"))

    def run(images: NDArray[np.uint8], semantic: Tensor, coherence: Tensor) -> Any:
        votes = first.run(None, {"image": images})[0]
        return second.run(None, {"votes": votes, "semantic": semantic.numpy(), "coherence": coherence.numpy()})[0]

    return run


def test_both_graphs_at_any_batch(tmp_path: Path) -> None:
    networks = build(small_state())
    semantic, coherence = answers(1).half(), answers(2).half()
    expected = fuse(networks, PICTURES, semantic, coherence)
    run = graphs(networks, PICTURES.numpy(), tmp_path)
    for batch in (1, 2, 5):
        rows = np.arange(batch) % 3
        found = run(PICTURES.numpy()[rows], semantic[rows], coherence[rows])
        np.testing.assert_allclose(found, expected[rows], atol=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(900)
@needs_fixtures
def test_full_size_gives_the_authors_numbers(tmp_path: Path) -> None:
    """In torch, experts and gate too, and in onnxruntime at batch 1, 2 and 5."""
    checkpoint = tmp_path / "published.pt"
    torch.save(published_state("ma_agiqa"), checkpoint)
    networks = build(read_state(checkpoint))
    inputs, expected = fixture_arrays("ma_agiqa", "inputs"), fixture_arrays("ma_agiqa", "expected")
    semantic, coherence = (torch.from_numpy(inputs[name][:, 0]) for name in ("tensor1", "tensor2"))
    with torch.inference_mode():
        votes = networks.votes(torch.from_numpy(inputs["image_u8"]))
        experts = networks.fusion.experts(votes, semantic, coherence)
        close(experts[:, 0], expected["act.fc4096_784_a2"], atol=5e-5, rtol=1e-4)
        close(experts[:, 1], expected["act.fc4096_784_b2"], atol=5e-5, rtol=1e-4)
        close(experts[:, 2], expected["act.fc784_784"], atol=5e-5, rtol=1e-4)
        close(networks.fusion.gate(experts.flatten(1)), expected["act.gating"], atol=5e-5, rtol=1e-4)
        close(networks.fusion(votes, semantic, coherence), expected["score"][:, 0])
        close(networks.fusion(votes, coherence, semantic), expected["score_tensors_swapped"][:, 0])
        close(networks.fusion(votes.flip(0), semantic, coherence), expected["score_images_swapped"][:, 0])
    # The bundle as the server computes it, with the answers of the fixture in place of the language model's.
    settings = Settings(
        out=tmp_path / "models",
        name="ma-agiqa",
        version="1",
        checkpoint_sha256="0" * 64,
        command="tests",
        picture_count=4,
        max_batch=2,
        threads=2,
    )
    place = export(load(checkpoint, lmm_revision="0" * 64), settings).places["fp32"]
    model = load_model(place, RuntimeSettings(provider="cpu", threads=2))
    for batch in (1, 2, 5):
        rows = np.arange(batch) % 2
        answers_of = {"semantic": semantic[rows].float().numpy(), "coherence": coherence[rows].float().numpy()}
        pictures = [inputs["image_u8"][row] for row in rows]
        found = compute_raw(model, pictures, [""] * batch, ["visual_quality"], answers_of)
        close(torch.from_numpy(found[:, 0].astype(np.float32)), expected["score"][rows, 0])


def close(found: Tensor, expected: NDArray[np.float32], atol: float = 1e-6, rtol: float = 1e-5) -> None:
    np.testing.assert_allclose(found, expected, atol=atol, rtol=rtol)
