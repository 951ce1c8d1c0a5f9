"""ImageReward: BLIP's picture tower, a text tower that looks at the picture in every layer, and a perceptron.

Xu et al., NeurIPS 2023, on BLIP (Li et al., ICML 2022). The text tower is BERT with a second attention, over the
picture's positions, after each layer's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from critiq_exporters.families.blip import Attention, PictureTower
from critiq_exporters.families.clip.heads import perceptron
from critiq_exporters.families.clip.network import attend

MEAN, STD = 0.16717362830052426, 1.0333394966054072
"""Of the raw rewards, as published: the score is (reward - mean) / std."""
_BLOCKED = -1e4
_HEAD_WIDTH = 64


@dataclass(frozen=True)
class Shape:
    """Sizes; the defaults are the published model's (ViT-L/16 at 224, BERT base)."""

    image: int = 224
    patch: int = 16
    width: int = 1024
    hidden: int = 4096
    layers: int = 24
    text_width: int = 768
    text_hidden: int = 3072
    text_layers: int = 12
    words: int = 30524
    context: int = 512

    def __post_init__(self) -> None:
        for name, width in (("picture", self.width), ("text", self.text_width)):
            if width % _HEAD_WIDTH:
                raise ValueError(f"the {name} tower's width of {width} does not divide into heads of {_HEAD_WIDTH}")


class ImageReward(nn.Module):
    """Both stages, as one checkpoint holds them."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.picture = Picture(shape)
        self.reward = Reward(shape)


class Picture(PictureTower):
    """Stage: pixels to features of the patches, with one for the whole before them."""

    def __init__(self, shape: Shape) -> None:
        blocks = (_PictureBlock(shape) for _ in range(shape.layers))
        super().__init__(shape.image, shape.patch, shape.width, blocks, eps=1e-6)


class Reward(nn.Module):
    """Stage: features of a picture and the prompt's tokens to the reward."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.words = nn.Embedding(shape.words, shape.text_width)
        self.positions = nn.Embedding(shape.context, shape.text_width)
        self.norm = nn.LayerNorm(shape.text_width, eps=1e-12)
        self.layers = nn.ModuleList(_TextLayer(shape) for _ in range(shape.text_layers))
        self.head = perceptron(shape.text_width)

    def forward(self, picture: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        """``picture`` as :class:`Picture` gives it, int64 ids and mask ``[batch, length]``, to ``[batch]``."""
        at = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(at))
        padding = (1 - mask.to(x.dtype))[:, None, None] * _BLOCKED
        for layer in self.layers:
            x = layer(x, padding, picture)
        reward: Tensor = (self.head(x[:, 0]).squeeze(1) - MEAN) / STD
        return reward


class _PictureBlock(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.width // _HEAD_WIDTH
        self.norm1 = nn.LayerNorm(shape.width, eps=1e-6)
        self.qkv = nn.Linear(shape.width, 3 * shape.width)
        self.out = nn.Linear(shape.width, shape.width)
        self.norm2 = nn.LayerNorm(shape.width, eps=1e-6)
        self.fc1 = nn.Linear(shape.width, shape.hidden)
        self.fc2 = nn.Linear(shape.hidden, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=2)
        x = x + self.out(attend(q, k, v, self.heads))
        refined: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return refined


class _TextLayer(nn.Module):
    """Attention among the words, attention over the picture, a perceptron; each added, then normed."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.text_width
        self.own = Attention(width, width, width // _HEAD_WIDTH)
        self.cross = Attention(width, shape.width, width // _HEAD_WIDTH)
        self.fc1 = nn.Linear(width, shape.text_hidden)
        self.fc2 = nn.Linear(shape.text_hidden, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, padding: Tensor, picture: Tensor) -> Tensor:
        x = self.own(x, x, padding)
        x = self.cross(x, picture, None)
        refined: Tensor = self.norm(x + self.fc2(F.gelu(self.fc1(x))))
        return refined
