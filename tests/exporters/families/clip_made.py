"""Small checkpoints of the CLIP-shaped families, in the published layouts, weights made from their names."""

from __future__ import annotations

import itertools
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor
from transformers import CLIPConfig, CLIPModel

SIDE, CONTEXT, EMBEDDING = 32, 20, 24
SCALE, RESNET_SCALE = 100.0, 40.0
MERGES = ["t h", "th e</w>", "i n", "r e", "re d</w>", "c i", "ci r", "a t", "p h", "o t", "ph ot", "phot o</w>"]


def vocabulary() -> dict[str, int]:
    """Of a byte-pair encoding with the merges above, as CLIP's: bytes, bytes that end a word, merges, two marks."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merged = [merge.replace(" ", "") for merge in MERGES]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    return {word: number for number, word in enumerate(words)}


def write_vocabulary(folder: Path) -> None:
    """``vocab.json`` and ``merges.txt``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary()), "utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n", "utf-8")


def hugging_face_clip(
    activation: str = "quick_gelu", layers: int = 2, widths: tuple[int, int] = (60, 48), heads: int = 3
) -> CLIPModel:
    """transformers' own network; ``widths`` of the picture tower and the text tower, not of the usual heads."""
    words = len(vocabulary())
    config = CLIPConfig(
        projection_dim=EMBEDDING,
        text_config={
            "hidden_size": widths[1],
            "intermediate_size": 96,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "vocab_size": words,
            "max_position_embeddings": CONTEXT,
            "bos_token_id": words - 2,
            "eos_token_id": words - 1,
            "hidden_act": activation,
        },
        vision_config={
            "hidden_size": widths[0],
            "intermediate_size": 120,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "image_size": SIDE,
            "patch_size": 8,
            "hidden_act": activation,
        },
    )
    model = CLIPModel(config).eval()
    model.load_state_dict(
        {
            name: made(name, tuple(value.shape)) if value.is_floating_point() else value
            for name, value in state_of(model)
        }
    )
    return model


def state_of(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return list(model.state_dict().items())


def made(name: str, shape: tuple[int, ...]) -> Tensor:
    """float32 of a normal n from a Philox generator whose key is the CRC-32 of ``name``, scaled by the kind of entry.

    Those of the fixtures made with the authors' code follow the same rule, but for the temperature.
    """
    parent, last = ["", *name.split(".")][-2:]
    n = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode()))).standard_normal(shape, dtype=np.float32)
    values: Any = np.float32(0.02) * n
    if last == "running_var":
        values = np.float32(1) + np.float32(0.1) * np.abs(n)
    elif last == "running_mean":
        values = np.float32(0.1) * n
    elif last.endswith("weight") and "embedding" not in parent:
        scale = 0.02 if len(shape) == 1 else 0.7 / np.sqrt(np.prod(shape[1:]))
        values = np.float32(scale) * n + np.float32(len(shape) == 1)
    return torch.from_numpy(np.asarray(values, np.float32).reshape(shape))


def save_hugging_face(folder: Path, layers: int = 2) -> CLIPModel:
    """A folder as ``save_pretrained`` writes it, with the vocabulary; returns the network."""
    write_vocabulary(folder)
    model = hugging_face_clip(layers=layers)
    with torch.no_grad():
        model.logit_scale.fill_(float(np.log(SCALE)))
    model.save_pretrained(folder)
    return model


def open_clip_state(model: CLIPModel) -> dict[str, Tensor]:
    """The same weights under OpenCLIP's names, as its code keeps them."""
    theirs = dict(state_of(model))
    state = {
        "logit_scale": theirs["logit_scale"],
        "visual.conv1.weight": theirs["vision_model.embeddings.patch_embedding.weight"],
        "visual.class_embedding": theirs["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": theirs["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": theirs["visual_projection.weight"].T.contiguous(),
        "token_embedding.weight": theirs["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": theirs["text_model.embeddings.position_embedding.weight"],
        "text_projection": theirs["text_projection.weight"].T.contiguous(),
        "attn_mask": torch.zeros(CONTEXT, CONTEXT),
    }
    for kind in ("weight", "bias"):
        state |= {
            f"visual.ln_pre.{kind}": theirs[f"vision_model.pre_layrnorm.{kind}"],
            f"visual.ln_post.{kind}": theirs[f"vision_model.post_layernorm.{kind}"],
            f"ln_final.{kind}": theirs[f"text_model.final_layer_norm.{kind}"],
        }
        for tower, prefix in (("vision_model", "visual.transformer"), ("text_model", "transformer")):
            for layer in range(model.config.vision_config.num_hidden_layers):
                source, block = f"{tower}.encoder.layers.{layer}", f"{prefix}.resblocks.{layer}"
                state[f"{block}.attn.in_proj_{kind}"] = torch.cat(
                    [theirs[f"{source}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
                )
                state |= {
                    f"{block}.attn.out_proj.{kind}": theirs[f"{source}.self_attn.out_proj.{kind}"],
                    f"{block}.ln_1.{kind}": theirs[f"{source}.layer_norm1.{kind}"],
                    f"{block}.ln_2.{kind}": theirs[f"{source}.layer_norm2.{kind}"],
                    f"{block}.mlp.c_fc.{kind}": theirs[f"{source}.mlp.fc1.{kind}"],
                    f"{block}.mlp.c_proj.{kind}": theirs[f"{source}.mlp.fc2.{kind}"],
                }
    return state


def open_clip_config(layers: int = 2, **changes: Any) -> dict[str, Any]:
    """``open_clip_config.json`` of the same network; ``changes`` replace entries of ``vision_cfg``."""
    vision = {"image_size": SIDE, "layers": layers, "width": 60, "head_width": 20, "mlp_ratio": 2.0, "patch_size": 8}
    text = {"context_length": CONTEXT, "vocab_size": len(vocabulary()), "width": 48, "heads": 3, "layers": layers}
    return {
        "model_cfg": {
            "embed_dim": EMBEDDING,
            "vision_cfg": {**vision, **changes},
            "text_cfg": {**text, "mlp_ratio": 2.0},
            "quick_gelu": True,
        },
        "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.25, 0.26, 0.27]},
    }


def save_open_clip(folder: Path, layers: int = 2) -> None:
    """A folder in OpenCLIP's layout, with channels' mean and deviation of its own."""
    write_vocabulary(folder)
    save_file(open_clip_state(hugging_face_clip(layers=layers)), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(open_clip_config(layers)), "utf-8")


def save_open_clip_resnet(folder: Path) -> None:
    """The same texts beside a residual network for pictures: sixteen channels, one block a stage."""
    write_vocabulary(folder)
    state = {
        name: value for name, value in open_clip_state(hugging_face_clip(layers=1)).items() if "visual." not in name
    }
    state |= {name: made(name, shape) for name, shape in _resnet_shapes(16).items()}
    state["logit_scale"] = torch.tensor(float(np.log(RESNET_SCALE)))
    save_file(state, folder / "open_clip_model.safetensors")
    config = open_clip_config(1)
    config["model_cfg"]["vision_cfg"] = {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}
    (folder / "open_clip_config.json").write_text(json.dumps(config), "utf-8")


def _resnet_shapes(width: int) -> dict[str, tuple[int, ...]]:
    def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.{kind}": (channels,) for kind in ("weight", "bias", "running_mean", "running_var")}

    half, last = width // 2, width * 32
    shapes: dict[str, tuple[int, ...]] = {
        "visual.conv1.weight": (half, 3, 3, 3),
        "visual.conv2.weight": (half, half, 3, 3),
        "visual.conv3.weight": (width, half, 3, 3),
        "visual.attnpool.positional_embedding": ((SIDE // 32) ** 2 + 1, last),
    }
    shapes |= norm("visual.bn1", half) | norm("visual.bn2", half) | norm("visual.bn3", width)
    for part, out in (("q_proj", last), ("k_proj", last), ("v_proj", last), ("c_proj", EMBEDDING)):
        shapes |= _linear(f"visual.attnpool.{part}", last, out)
    channels = width
    for stage in range(4):
        inner, block = width * 2**stage, f"visual.layer{stage + 1}.0"
        shapes |= {
            f"{block}.conv1.weight": (inner, channels, 1, 1),
            f"{block}.conv2.weight": (inner, inner, 3, 3),
            f"{block}.conv3.weight": (4 * inner, inner, 1, 1),
            f"{block}.downsample.0.weight": (4 * inner, channels, 1, 1),
        }
        shapes |= norm(f"{block}.bn1", inner) | norm(f"{block}.bn2", inner)
        shapes |= norm(f"{block}.bn3", 4 * inner) | norm(f"{block}.downsample.1", 4 * inner)
        channels = 4 * inner
    return shapes


def image_reward_state(layers: int = 2) -> dict[str, Tensor]:
    """A checkpoint in ImageReward's layout: towers of 128 and 64, forty words, pictures of 32 pixels."""
    shapes: dict[str, tuple[int, ...]] = {
        "blip.visual_encoder.cls_token": (1, 1, 128),
        "blip.visual_encoder.pos_embed": (1, 5, 128),
        "blip.visual_encoder.patch_embed.proj.weight": (128, 3, 16, 16),
        "blip.visual_encoder.patch_embed.proj.bias": (128,),
        "blip.text_encoder.embeddings.word_embeddings.weight": (40, 64),
        "blip.text_encoder.embeddings.position_embeddings.weight": (40, 64),
    }
    shapes |= _norms("blip.visual_encoder.norm", 128) | _norms("blip.text_encoder.embeddings.LayerNorm", 64)
    for layer in range(layers):
        block = f"blip.visual_encoder.blocks.{layer}"
        shapes |= _norms(f"{block}.norm1", 128) | _norms(f"{block}.norm2", 128)
        shapes |= _linear(f"{block}.attn.qkv", 128, 384) | _linear(f"{block}.attn.proj", 128, 128)
        shapes |= _linear(f"{block}.mlp.fc1", 128, 256) | _linear(f"{block}.mlp.fc2", 256, 128)
        block = f"blip.text_encoder.encoder.layer.{layer}"
        for kind, source in (("attention", 64), ("crossattention", 128)):
            shapes |= _linear(f"{block}.{kind}.self.query", 64, 64)
            shapes |= _linear(f"{block}.{kind}.self.key", source, 64)
            shapes |= _linear(f"{block}.{kind}.self.value", source, 64)
            shapes |= _linear(f"{block}.{kind}.output.dense", 64, 64) | _norms(f"{block}.{kind}.output.LayerNorm", 64)
        shapes |= _linear(f"{block}.intermediate.dense", 64, 128) | _linear(f"{block}.output.dense", 128, 64)
        shapes |= _norms(f"{block}.output.LayerNorm", 64)
    for number, (before, after) in zip(
        (0, 2, 4, 6, 7), ((64, 1024), (1024, 128), (128, 64), (64, 16), (16, 1)), strict=True
    ):
        shapes |= _linear(f"mlp.layers.{number}", before, after)
    unused = {"blip.text_encoder.embeddings.position_ids": torch.arange(40)[None], "blip.text_proj.bias": torch.ones(3)}
    return {name: made(name, shape) for name, shape in shapes.items()} | unused


def write_bert_vocabulary(folder: Path) -> None:
    """``vocab.txt`` with forty words and pieces."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = [
        *"abcdefghilmnoprst",
        *(f"##{letter}" for letter in "abcdeghinorst"),
        "red",
        "circle",
        "##ed",
        "on",
        "a.",
    ]
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters]
    (folder / "vocab.txt").write_text("\n".join(words[:39]) + "\n", "utf-8")


def save_image_reward(folder: Path, layers: int = 2) -> None:
    """A folder with the published file's name, and a vocabulary."""
    write_bert_vocabulary(folder)
    torch.save(image_reward_state(layers), folder / "ImageReward.pt")


def _norms(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _linear(name: str, before: int, after: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (after, before), f"{name}.bias": (after,)}


def laion_head_state(width: int = EMBEDDING) -> Mapping[str, Tensor]:
    """The published predictor's layout for embeddings of ``width`` numbers."""
    sizes = (width, 1024, 128, 64, 16, 1)
    state = {}
    for number, (before, after) in zip((0, 2, 4, 6, 7), itertools.pairwise(sizes), strict=True):
        state |= {name: made(name, shape) for name, shape in _linear(f"layers.{number}", before, after).items()}
    return state
