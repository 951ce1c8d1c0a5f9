"""MANIQA at a tiny size: the reader and what it refuses, the network's building blocks, the model that it makes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.families.maniqa.checkpoint import build, read_shape
from critiq_exporters.families.maniqa.family import load
from critiq_exporters.families.maniqa.network import Shape, relative_index, shift_mask
from critiq_server.bundles.manifest import FiveCropsView, ImageInput, ResizeView
from tests.exporters.families.rule_made import PARITY, TINY, needs_fixtures, tiny_state

PICTURES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8))
RECORDED = (0.03235238, 0.03052788, 0.03686886)


def scores(state: dict[str, Tensor], scale: float = 0.8) -> Tensor:
    with torch.inference_mode():
        found: Tensor = build(state, scale)(PICTURES)
    return found


def test_rule_made_weights_give_the_recorded_scores() -> None:
    """Recorded when the same code gave the authors' numbers at full size."""
    np.testing.assert_allclose(scores(tiny_state()), RECORDED, atol=1e-6, rtol=1e-5)


def test_sizes_are_read_from_the_shapes() -> None:
    assert read_shape(tiny_state(), 0.13) == replace(TINY, scale=0.13)


def test_entries_that_inference_does_not_use_change_nothing() -> None:
    state = tiny_state()
    bare = {name: tensor for name, tensor in state.items() if not name.startswith(("vit.blocks.10", "vit.head"))}
    assert torch.equal(scores(state), scores(bare))


def test_data_parallel_names_wrappers_and_both_file_formats_read_alike(tmp_path: Path) -> None:
    state = tiny_state()
    torch.save({"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, tmp_path / "a.pth")
    save_file(state, tmp_path / "b.safetensors")
    for file in ("a.pth", "b.safetensors"):
        read = read_state(tmp_path / file)
        assert read.keys() == state.keys()
        assert torch.equal(scores(read), scores(state))


def test_the_scale_matters_and_is_the_callers_to_give() -> None:
    assert not torch.allclose(scores(tiny_state(), 0.8), scores(tiny_state(), 0.13), atol=1e-4)


def test_a_score_does_not_depend_on_the_batch() -> None:
    model = build(tiny_state(), 0.8)
    with torch.inference_mode():
        alone = torch.cat([model(PICTURES[row : row + 1]) for row in range(3)])
        crops = model(PICTURES[None])
    torch.testing.assert_close(scores(tiny_state()), alone, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(crops, alone.mean(dim=0, keepdim=True), atol=1e-6, rtol=1e-5)


def test_missing_parameters_are_listed_by_group() -> None:
    state = {name: tensor for name, tensor in tiny_state().items() if ".mlp.fc2." not in name}
    with pytest.raises(CheckpointError) as caught:
        build(state, 0.8)
    message = str(caught.value)
    assert "missing: 36 parameters" in message
    assert "vit.blocks.*.mlp.fc2.weight (10 of them, first vit.blocks.0.mlp.fc2.weight)" in message


def test_unknown_and_wrongly_shaped_parameters_are_listed_together() -> None:
    state = tiny_state() | {"tablock1.0.c_q.weight": torch.zeros(64, 63), "projector.weight": torch.zeros(2)}
    with pytest.raises(CheckpointError) as caught:
        build(state, 0.8)
    message = str(caught.value)
    assert "unknown: 1 parameters\n    projector.weight" in message
    assert "tablock*" not in message
    assert "tablock1.*.c_q.weight is [64, 63], should be [64, 64]" in message


def test_values_that_are_no_numbers_are_refused() -> None:
    state = tiny_state()
    state["conv2.bias"][3] = torch.nan
    with pytest.raises(CheckpointError, match=r"not finite: 1 parameters\n    conv2\.bias"):
        build(state, 0.8)


def test_a_mask_of_another_architecture_is_refused() -> None:
    state = tiny_state()
    state["swintransformer1.layers.0.blocks.1.attn_mask"] *= 0
    with pytest.raises(CheckpointError, match="not what the architecture computes: 1 parameters"):
        build(state, 0.8)


def test_a_checkpoint_of_something_else_is_held_against_the_published_sizes() -> None:
    with pytest.raises(CheckpointError, match=r"missing: \d+ parameters(.|\n)*vit\.cls_token(.|\n)*unknown: 1"):
        build({"classifier.weight": torch.zeros(2, 2)}, 0.8)


@needs_fixtures
def test_index_and_mask_are_the_authors(tmp_path: Path) -> None:
    with np.load(PARITY / "maniqa" / "buffers.npz") as buffers:
        index = buffers["swintransformer1.layers.0.blocks.0.attn.relative_position_index"]
        mask = buffers["swintransformer1.layers.0.blocks.1.attn_mask"]
    assert np.array_equal(relative_index(4), index)
    assert np.array_equal(shift_mask(28, 4, 2), mask)


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="do not divide into windows"):
        Shape(image=72)
    with pytest.raises(ValueError, match="multiples of their heads"):
        Shape(widths=(766, 384))


def test_views_are_those_of_the_authors_evaluations(tiny_checkpoint: Path) -> None:
    whole, crops = (
        load(tiny_checkpoint, evaluation=kind).stages[0].inputs["image"] for kind in ("whole", "five_crops")
    )
    assert isinstance(whole, ImageInput)
    assert whole.view == ResizeView(height=64, width=64, filter="opencv_cubic")
    assert isinstance(crops, ImageInput)
    assert isinstance(crops.view, FiveCropsView)
