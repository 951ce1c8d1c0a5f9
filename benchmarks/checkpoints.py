"""Checkpoints at published sizes with weights drawn at random: for speed, which does not depend on the weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn


def maniqa(folder: Path) -> Path:
    """MANIQA with ViT-B/8 at 224 x 224, 115 M parameters."""
    from critiq_exporters.families.maniqa.checkpoint import tower_names
    from critiq_exporters.families.maniqa.network import Shape, Tower

    shape = Shape()
    ours = Tower(shape).state_dict(keep_vars=True)
    names = tower_names(shape)
    state = {
        theirs: _drawn(ours[name]) if isinstance(ours[name], nn.Parameter) else ours[name].detach().clone()
        for theirs, name in names.items()
    }
    return _saved(state, folder / "maniqa.safetensors")


def cnn_iqa(folder: Path) -> Path:
    """CNN-IQA, 0.7 M parameters."""
    shapes = {
        "conv1.weight": (50, 3, 7, 7),
        "conv1.bias": (50,),
        "fc1.weight": (800, 100),
        "fc1.bias": (800,),
        "fc2.weight": (800, 800),
        "fc2.bias": (800,),
        "fc3.weight": (1, 800),
        "fc3.bias": (1,),
    }
    return _saved({name: _drawn(torch.empty(shape)) for name, shape in shapes.items()}, folder / "cnn_iqa.safetensors")


def clip_large(folder: Path) -> Path:
    """CLIP ViT-L/14 at 224 x 224 in the Hugging Face layout, 428 M parameters, with a tokenizer of bytes alone."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPConfig, CLIPModel

    place = folder / "clip-vit-large-patch14"
    config = CLIPConfig(
        projection_dim=768,
        text_config={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "projection_dim": 768,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
        vision_config={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
            "projection_dim": 768,
        },
    )
    CLIPModel(config).save_pretrained(place)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"unused{number}" for number in range(49406 - len(words))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (place / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}), "utf-8")
    (place / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    return place


MAKERS: Mapping[str, Callable[[Path], Path]] = {
    "maniqa": maniqa,
    "cnn-iqa": cnn_iqa,
    "clipscore": clip_large,
}
"""By family."""


def _drawn(like: Tensor) -> Tensor:
    fan_in = like[0].numel() if like.dim() > 1 else 0
    drawn = torch.randn(like.shape)
    return 0.7 * drawn / fan_in**0.5 if fan_in else 1 + 0.02 * drawn


def _saved(state: dict[str, Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path
