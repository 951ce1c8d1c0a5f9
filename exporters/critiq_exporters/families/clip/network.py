"""CLIP: a tower for pictures and a tower for texts that end in one space (Radford et al., ICML 2021).

Both towers are transformers with the norm before each part. Pictures can also go through a residual network (see
``resnet.py``). What a family makes of the two embeddings is in ``heads.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCKED = -1e4
"""Added to the logit of a later word. Smaller than any logit that matters, and float16 holds it."""


@dataclass(frozen=True)
class Tower:
    """Sizes that both kinds of transformer have; the defaults are those of ViT-L/14's picture tower."""

    width: int = 1024
    hidden: int = 4096
    layers: int = 24
    heads: int = 16
    quick_gelu: bool = True
    """``x * sigmoid(1.702 x)``, of OpenAI's weights, in place of the exact GELU. Not in a state dict."""
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.heads < 1 or self.width % self.heads:
            raise ValueError(f"a width of {self.width} does not divide into {self.heads} heads")


@dataclass(frozen=True)
class PictureShape:
    """Sizes of a picture transformer; the defaults are ViT-L/14's."""

    tower: Tower = Tower()
    image: int = 224
    patch: int = 14
    embedding: int = 768


@dataclass(frozen=True)
class TextShape:
    """Sizes of a text transformer; the defaults are ViT-L/14's."""

    tower: Tower = Tower(width=768, hidden=3072, layers=12, heads=12)
    words: int = 49408
    context: int = 77
    embedding: int = 768
    end: int = 49407
    """Id of the token that closes a text; the embedding is read there."""


class PictureTower(nn.Module):
    """Normalised pictures, float32 ``[batch, 3, height, width]``, to embeddings, not yet of length one."""

    side: int
    """Pixels a side of the pictures that it was trained on."""
    embedding: int


class PictureTransformer(PictureTower):
    """The picture tower that is a transformer over patches."""

    def __init__(self, shape: PictureShape) -> None:
        super().__init__()
        self.side, self.embedding = shape.image, shape.embedding
        width, eps = shape.tower.width, shape.tower.eps
        self.patches = nn.Conv2d(3, width, shape.patch, shape.patch, bias=False)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros((shape.image // shape.patch) ** 2 + 1, width))
        self.norm_before = nn.LayerNorm(width, eps=eps)
        self.blocks = nn.ModuleList(_Block(shape.tower) for _ in range(shape.tower.layers))
        self.norm_after = nn.LayerNorm(width, eps=eps)
        self.project = nn.Linear(width, shape.embedding, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[batch, 3, image, image]`` to ``[batch, embedding]``."""
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], 1, -1), x], dim=1) + self.positions
        x = self.norm_before(x)
        for block in self.blocks:
            x = block(x)
        embedding: Tensor = self.project(self.norm_after(x[:, 0]))
        return embedding


class TextTransformer(nn.Module):
    """Token ids to embeddings, not yet of length one. A word sees those before it only."""

    def __init__(self, shape: TextShape) -> None:
        super().__init__()
        width = shape.tower.width
        self.shape = shape
        self.words = nn.Embedding(shape.words, width)
        self.positions = nn.Embedding(shape.context, width)
        self.blocks = nn.ModuleList(_Block(shape.tower) for _ in range(shape.tower.layers))
        self.norm_after = nn.LayerNorm(width, eps=shape.tower.eps)
        self.project = nn.Linear(width, shape.embedding, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 ``[batch, length]`` to ``[batch, embedding]``, read at the first closing token.

        What follows that token (padding) has no effect.
        """
        at = torch.arange(ids.shape[1], device=ids.device)
        x = self.words(ids) + self.positions(at)
        later = (at[:, None] < at).to(x.dtype) * _BLOCKED
        for block in self.blocks:
            x = block(x, later)
        end = (ids == self.shape.end).to(torch.float32).argmax(dim=1)
        x = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2])).squeeze(1)
        embedding: Tensor = self.project(self.norm_after(x))
        return embedding


class Clip(nn.Module):
    """Both towers and the temperature, as one checkpoint holds them."""

    def __init__(self, image: PictureTower, text: TextTransformer) -> None:
        super().__init__()
        self.image = image
        self.text = text
        self.logit_scale = nn.Parameter(torch.zeros(()))
        """Natural logarithm of the factor of cosines."""

    @property
    def scale(self) -> float:
        """The factor of cosines; about 100 in published weights."""
        return float(self.logit_scale.detach().exp())


class ImageEncoder(nn.Module):
    """Stage: pixels to embeddings of length one."""

    mean: Tensor
    std: Tensor

    def __init__(self, tower: PictureTower, mean: Sequence[float], std: Sequence[float]) -> None:
        """``mean`` and ``std`` of the three channels, of values in 0..1."""
        super().__init__()
        self.tower = tower
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 RGB ``[batch, height, width, 3]`` to float32 ``[batch, embedding]``."""
        x = pixels.permute(0, 3, 1, 2).to(torch.float32) / 255
        return F.normalize(self.tower((x - self.mean) / self.std), dim=1)


class TextEncoder(nn.Module):
    """Stage: token ids to embeddings of length one."""

    def __init__(self, tower: TextTransformer) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, ids: Tensor) -> Tensor:
        """int64 ``[batch, length]`` to float32 ``[batch, embedding]``."""
        return F.normalize(self.tower(ids), dim=1)


class _Block(nn.Module):
    """Attention, then a perceptron, each after a norm and beside a short cut; ``[batch, positions, width]``."""

    def __init__(self, tower: Tower) -> None:
        super().__init__()
        width = tower.width
        self.heads, self.quick_gelu = tower.heads, tower.quick_gelu
        self.norm1 = nn.LayerNorm(width, eps=tower.eps)
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=tower.eps)
        self.fc1 = nn.Linear(width, tower.hidden)
        self.fc2 = nn.Linear(tower.hidden, width)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        y = self.norm1(x)
        x = x + self.out(attend(self.q(y), self.k(y), self.v(y), self.heads, bias))
        y = self.fc1(self.norm2(x))
        y = y * torch.sigmoid(1.702 * y) if self.quick_gelu else F.gelu(y)
        refined: Tensor = x + self.fc2(y)
        return refined


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int, bias: Tensor | None = None) -> Tensor:
    """Attention of several heads: ``[batch, queries, width]`` over ``[batch, keys, width]``, as many as the queries.

    ``bias`` is added to the logits; it fits ``[batch, heads, queries, keys]``.
    """
    q, k, v = (torch.unflatten(part, 2, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    mixed: Tensor = (logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
    return mixed
