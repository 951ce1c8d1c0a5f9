"""ImageReward against transformers' BLIP towers with the same weights, and its reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from critiq_exporters.core.checkpoints import CheckpointError
from critiq_exporters.families.imagereward.checkpoint import build
from critiq_exporters.families.imagereward.family import load
from critiq_exporters.families.imagereward.network import Shape
from tests.exporters.families.clip_made import image_reward_state, save_image_reward
from tests.exporters.families.clip_oracles import image_reward, pixel_values

PIXELS = np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), np.uint8)
IDS = torch.tensor([[2, 9, 30, 3, 0, 0], [2, 3, 0, 0, 0, 0], [2, 5, 6, 7, 8, 3]])
MASK = (IDS != 0).long()


def test_score_and_features_are_those_of_blips_towers() -> None:
    state = image_reward_state()
    network = build(state)
    picture, expected = image_reward(state, pixel_values([Image.fromarray(one) for one in PIXELS]), IDS, MASK)
    with torch.inference_mode():
        features = network.picture(torch.from_numpy(PIXELS))
        found = network.reward(features, IDS, MASK)
    assert expected.std() > 0.02  # a thousand times the tolerance
    np.testing.assert_allclose(features, picture, atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_and_neighbours_change_nothing() -> None:
    network = build(image_reward_state())
    with torch.inference_mode():
        features = network.picture(torch.from_numpy(PIXELS))
        together = network.reward(features, IDS, MASK)
        alone = network.reward(features[:1], IDS[:1, :4], MASK[:1, :4])
        other = network.reward(features[1:2], IDS[:1, :4], MASK[:1, :4])
    np.testing.assert_allclose(alone, together[:1], atol=1e-5)
    assert not np.allclose(other, alone, atol=1e-4)


def test_sizes_are_read_and_what_does_not_fit_is_listed() -> None:
    state = image_reward_state()
    assert build(state).shape == Shape(32, 16, 128, 256, 2, 64, 128, 2, 40, 40)
    del state["blip.text_encoder.encoder.layer.1.crossattention.self.key.bias"]
    state["mlp.layers.6.weight"] = torch.zeros(16, 63)
    state["blip.text_decoder.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        build(state)
    for line in (
        "missing: 1 parameters\n    blip.text_encoder.encoder.layer.*.crossattention.self.key.bias",
        "unknown: 1 parameters\n    blip.text_decoder.weight",
        "mlp.layers.*.weight is [16, 63], should be [16, 64]",
    ):
        assert line in str(caught.value)


def test_a_checkpoint_of_something_else_is_held_against_the_published_sizes() -> None:
    with pytest.raises(CheckpointError, match=r"missing: \d+ parameters(.|\n)*blip\.visual_encoder\.cls_token"):
        build({"classifier.weight": torch.zeros(2, 2)})


def test_prompts_are_cut_as_the_authors_do(tmp_path: Path) -> None:
    save_image_reward(tmp_path)
    model = load(tmp_path)
    tokenizer = model.tokenizers["text"]
    assert (tokenizer.max_length, tokenizer.pad_id) == (35, 0)
    assert model.dimensions[0].scope == "within_prompt"


def test_a_vocabulary_that_is_too_large_is_refused(tmp_path: Path) -> None:
    save_image_reward(tmp_path)
    with (tmp_path / "vocab.txt").open("a") as file:
        file.write("one\ntwo\nthree\n")
    with pytest.raises(
        CheckpointError, match=r"knows 42 tokens, the checkpoint's table has 40(.|\n)*bert-base-uncased"
    ):
        load(tmp_path)
