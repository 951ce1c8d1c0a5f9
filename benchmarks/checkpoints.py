"""Checkpoints at published sizes with weights drawn by their names: for speed, which does not depend on the weights."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from tokenizers import pre_tokenizers
from torch import Tensor, nn

from critiq_exporters.core.pictures import drawn_pictures
from critiq_exporters.families.natural_scene.fitting import fit_ilniqe, fit_niqe
from critiq_exporters.families.nima.network import VGG_POOLS, VGG_WIDTHS


def maniqa(folder: Path) -> Path:
    """MANIQA with ViT-B/8 at 224 x 224, 115 M parameters."""
    from critiq_exporters.families.maniqa.checkpoint import tower_names
    from critiq_exporters.families.maniqa.network import Shape, Tower

    ours = Tower(Shape()).state_dict(keep_vars=True)
    state = {
        theirs: _drawn(theirs, ours[name]) if isinstance(ours[name], nn.Parameter) else ours[name].detach().clone()
        for theirs, name in tower_names(Shape()).items()
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
    state = {name: _drawn(name, torch.empty(shape)) for name, shape in shapes.items()}
    return _saved(state, folder / "cnn_iqa.safetensors")


def nima(folder: Path) -> Path:
    """NIMA on VGG16, 15 M parameters."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise((3, *VGG_WIDTHS))):
        layers += [nn.Conv2d(before, after, 3), nn.ReLU()]
        if number in VGG_POOLS:
            layers.append(nn.MaxPool2d(2))
    network = nn.ModuleDict({"features": nn.Sequential(*layers), "classifier": nn.ModuleList([nn.Dropout()])})
    network["classifier"].append(nn.Linear(VGG_WIDTHS[-1] * 49, 10))
    state = {name: _drawn(name, value) for name, value in network.state_dict().items()}
    return _saved(state, folder / "nima.safetensors")


def niqe(folder: Path) -> Path:
    """NIQE's clean model, fitted on drawings."""
    return _saved_arrays(vars(fit_niqe(drawn_pictures(12))), folder / "niqe.safetensors")


def ilniqe(folder: Path) -> Path:
    """IL-NIQE's clean model, fitted on drawings."""
    return _saved_arrays(vars(fit_ilniqe(drawn_pictures(6))), folder / "ilniqe.safetensors")


def imagereward(folder: Path) -> Path:
    """ImageReward with ViT-L/16 and BERT base, 446 M parameters, with a vocabulary of letters."""
    from critiq_exporters.families.imagereward.checkpoint import names
    from critiq_exporters.families.imagereward.network import ImageReward, Shape

    _write_words(folder, Shape.words)
    state = _published(lambda: ImageReward(Shape()), names(Shape()))
    return _saved(state, folder / "ImageReward.safetensors")


def mint_iqa(folder: Path) -> Path:
    """The scoring half of MINT-IQA with ViT-g/14 and a query transformer of BERT's size, 1.2 G parameters."""
    from critiq_exporters.families.mint_iqa.checkpoint import scoring_names
    from critiq_exporters.families.mint_iqa.network import MintIqa, Shape

    _write_words(folder, Shape.words)
    state = _published(lambda: MintIqa(Shape()), scoring_names(Shape()))
    return _saved(state, folder / "mint_iqa.safetensors")


def eliq(folder: Path) -> Path:
    """ELIQ's scoring module on features of 4,096 numbers, 90 M parameters."""
    from critiq_exporters.families.eliq.network import Scorer, Shape

    with torch.device("meta"):
        ours = Scorer(Shape()).state_dict()
    return _saved({name: _drawn(name, value) for name, value in ours.items()}, folder / "eliq.safetensors")


def clip_large(folder: Path) -> Path:
    """CLIP ViT-L/14 at 224 x 224 in the Hugging Face layout, 428 M parameters, with a tokenizer of bytes alone."""
    return _clip(folder / "clip-vit-large-patch14", "quick_gelu", 768, (768, 12, 12), (1024, 24, 16))


def clip_huge(folder: Path) -> Path:
    """CLIP ViT-H/14 at 224 x 224, 986 M parameters: PickScore's network, and HPS v2's."""
    return _clip(folder / "PickScore_v1", "gelu", 1024, (1024, 24, 16), (1280, 32, 16))


def _clip(folder: Path, activation: str, joint: int, text: tuple[int, int, int], vision: tuple[int, int, int]) -> Path:
    """``text`` and ``vision``: width, layers, heads."""
    from transformers import CLIPConfig, CLIPModel

    def tower(sizes: tuple[int, int, int], **more: int) -> dict[str, Any]:
        width, layers, heads = sizes
        shape = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        return {**shape, "num_attention_heads": heads, "projection_dim": joint, "hidden_act": activation, **more}

    config = CLIPConfig(
        projection_dim=joint,
        text_config=tower(text, bos_token_id=49406, eos_token_id=49407),
        vision_config=tower(vision, patch_size=14),
    )
    CLIPModel(config).save_pretrained(folder)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += [f"unused{number}" for number in range(49406 - len(words))]
    words += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    return folder


MAKERS: Mapping[str, Callable[[Path], Path]] = {
    "maniqa": maniqa,
    "cnn-iqa": cnn_iqa,
    "nima": nima,
    "niqe": niqe,
    "ilniqe": ilniqe,
    "eliq": eliq,
    "clipscore": clip_large,
    "imagereward": imagereward,
    "pickscore": clip_huge,
    "mint-iqa": mint_iqa,
}
"""By family. HPS v2 has PickScore's network, LAION's predictor CLIPScore's, MA-AGIQA MANIQA's."""

OPTIONS: Mapping[str, Mapping[str, Any]] = {"eliq": {"lmm_revision": "0" * 64}}
"""What a family's ``load`` needs beside the checkpoint."""


def _published(make: Callable[[], nn.Module], names: Mapping[str, str]) -> dict[str, Tensor]:
    """A state dict under the published names (to ours) of the network that ``make`` makes."""
    with torch.device("meta"):
        ours = make().state_dict()
    return {theirs: _drawn(theirs, ours[name]) for theirs, name in names.items()}


def _drawn(name: str, like: Tensor) -> Tensor:
    """Normal numbers that follow from ``name``, of a size that keeps a network's signals in bounds."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    drawn = torch.randn(like.shape, generator=generator)
    fan_in = like[0].numel() if like.dim() > 1 else 0
    return 0.7 * drawn / fan_in**0.5 if fan_in else float(name.endswith("weight")) + 0.02 * drawn


def _write_words(folder: Path, count: int) -> None:
    """BERT's ``vocab.txt``, two words short of ``count`` as published: a table of words is larger than its file."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    words += [f"unused{number}" for number in range(count - 2 - len(words))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")


def _saved(state: dict[str, Tensor], path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)
    return path


def _saved_arrays(arrays: Mapping[str, NDArray[Any]], path: Path) -> Path:
    return _saved({name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}, path)
