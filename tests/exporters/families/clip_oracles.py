"""What the CLIP-shaped families give, by transformers' networks and Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import (
    BertTokenizer,
    BlipTextConfig,
    BlipVisionConfig,
    BlipVisionModel,
    CLIPModel,
    CLIPTokenizer,
)
from transformers.models.blip.modeling_blip_text import BlipTextModel

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
    layers = sum(name.endswith("crossattention.self.key.bias") for name in state)
    vision = BlipVisionModel(
        BlipVisionConfig(
            hidden_size=128,
            num_hidden_layers=layers,
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
            num_hidden_layers=layers,
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


def middle(image: Image.Image, side: int, rounded: bool) -> Image.Image:
    """The shorter side to ``side`` with Pillow's cubic filter, the longer one's middle cut out."""
    scaled = [int(side * length / min(image.size)) for length in image.size]
    left, top = (round((length - side) / 2) if rounded else (length - side) // 2 for length in scaled)
    resized = image.resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC)
    return resized.crop((left, top, left + side, top + side))


def on_black(image: Image.Image, side: int) -> Image.Image:
    """The longer side to ``side``, centred on black."""
    scaled = [round(side * length / max(image.size)) for length in image.size]
    canvas = Image.new("RGB", (side, side))
    resized = image.resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC)
    canvas.paste(resized, tuple((side - length) // 2 for length in scaled))
    return canvas


def pixel_values(images: Sequence[Image.Image], mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> Tensor:
    """float32 ``[batch, 3, side, side]``, each channel normalised."""
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 255
    return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def image_features(model: CLIPModel, values: Tensor) -> Tensor:
    """Of length one."""
    with torch.inference_mode():
        features = model.visual_projection(model.vision_model(values).pooler_output)
    return nn.functional.normalize(features, dim=1)


def text_features(model: CLIPModel, folder: Path, texts: Sequence[str]) -> Tensor:
    """Of length one, with the tokenizer of ``folder``."""
    length = model.config.text_config.max_position_embeddings
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    tokens = tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
    with torch.inference_mode():
        features = model.text_projection(model.text_model(**tokens).pooler_output)
    return nn.functional.normalize(features, dim=1)


def perceptron(state: dict[str, Tensor], x: Tensor, prefix: str = "") -> Tensor:
    """The published predictors' layers, one after another: ``[batch, width]`` to ``[batch]``."""
    for number in (0, 2, 4, 6, 7):
        weight, bias = (state[f"{prefix}layers.{number}.{kind}"] for kind in ("weight", "bias"))
        x = nn.functional.linear(x, weight, bias)
    return x[:, 0]


def image_reward(state: dict[str, Tensor], values: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features of pictures, and the published score of each with the text of its row."""
    vision, text = blips_towers(state)
    with torch.inference_mode():
        picture = vision(values).last_hidden_state
        hidden = text(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=picture,
            encoder_attention_mask=torch.ones(picture.shape[:2]),
        ).last_hidden_state[:, 0]
    return picture, (perceptron(state, hidden, "mlp.") - 0.16717362830052426) / 1.0333394966054072


def bert_ids(folder: Path, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    """Ids and mask with the vocabulary of ``folder``."""
    tokens = BertTokenizer.from_pretrained(folder)(
        list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt"
    )
    return tokens["input_ids"], tokens["attention_mask"]
