"""ImageReward against transformers' BLIP towers with the same weights, and its reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BlipTextConfig, BlipVisionConfig, BlipVisionModel
from transformers.models.blip.modeling_blip_text import BlipTextModel

from critiq_exporters.core.checkpoints import CheckpointError
from critiq_exporters.families.imagereward.checkpoint import build
from critiq_exporters.families.imagereward.family import load
from critiq_exporters.families.imagereward.network import Shape
from tests.exporters.families.clip_made import image_reward_state, save_image_reward

PIXELS = torch.from_numpy(np.random.default_rng(3).integers(0, 256, (3, 32, 32, 3), np.uint8))
IDS = torch.tensor([[2, 9, 30, 3, 0, 0], [2, 3, 0, 0, 0, 0], [2, 5, 6, 7, 8, 3]])
MASK = (IDS != 0).long()
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
VISION_NAMES = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj": "embeddings.patch_embedding",
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "norm": "post_layernorm",
    "blocks": "encoder.layers",
    "attn.qkv": "self_attn.qkv",
    "attn.proj": "self_attn.projection",
}


def blips_towers(state: dict[str, Tensor]) -> tuple[BlipVisionModel, BlipTextModel]:
    """Of transformers, with the weights of a checkpoint in ImageReward's layout."""
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=256,
            image_size=32,
            patch_size=16,
            layer_norm_eps=1e-6,  # the authors'; transformers' default is another
        )
    )
    text = BlipTextModel(
        BlipTextConfig(
            vocab_size=40,
            hidden_size=64,
            encoder_hidden_size=128,
            num_hidden_layers=2,
            num_attention_heads=1,
            intermediate_size=128,
            max_position_embeddings=40,
            bos_token_id=2,
            sep_token_id=3,
        ),
        add_pooling_layer=False,
    )
    prefixes = ("blip.visual_encoder.", "blip.text_encoder.")
    parts = [
        {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        for prefix in prefixes
    ]
    vision.load_state_dict({renamed(name): value for name, value in parts[0].items()})
    text.load_state_dict({name: value for name, value in parts[1].items() if "position_ids" not in name})
    return vision.eval(), text.eval()


def renamed(name: str) -> str:
    for theirs, blips in VISION_NAMES.items():
        if (f".{name}.").find(f".{theirs}.") >= 0:
            name = f".{name}.".replace(f".{theirs}.", f".{blips}.", 1).strip(".")
    return name


def reference(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Features of the pictures, and the published score on them."""
    vision, text = blips_towers(state)
    x = (PIXELS.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.inference_mode():
        picture = vision(x).last_hidden_state
        hidden = text(
            input_ids=IDS,
            attention_mask=MASK,
            encoder_hidden_states=picture,
            encoder_attention_mask=torch.ones(picture.shape[:2]),
        ).last_hidden_state[:, 0]
        for number in (0, 2, 4, 6, 7):
            weight, bias = (state[f"mlp.layers.{number}.{kind}"] for kind in ("weight", "bias"))
            hidden = nn.functional.linear(hidden, weight, bias)
    return picture, (hidden[:, 0] - 0.16717362830052426) / 1.0333394966054072


def test_score_and_features_are_those_of_blips_towers() -> None:
    state = image_reward_state()
    network = build(state)
    picture, expected = reference(state)
    with torch.inference_mode():
        features = network.picture(PIXELS)
        found = network.reward(features, IDS, MASK)
    assert expected.std() > 0.02  # a thousand times the tolerance
    np.testing.assert_allclose(features, picture, atol=1e-5)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_padding_and_neighbours_change_nothing() -> None:
    network = build(image_reward_state())
    with torch.inference_mode():
        features = network.picture(PIXELS)
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
