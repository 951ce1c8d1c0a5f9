"""What the BLIP models share: a tower for pictures, and an attention of words or queries over each other or a picture.

Li et al., ICML 2022 and 2023. Their picture towers differ in their blocks, their text networks in what attends to what.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from critiq_exporters.families.clip.folder import MEAN, STD
from critiq_exporters.families.clip.network import attend


class PictureTower(nn.Module):
    """Stage: pixels to features of the patches, with one for the whole before them."""

    mean: Tensor
    std: Tensor

    def __init__(self, image: int, patch: int, width: int, blocks: Iterable[nn.Module], eps: float) -> None:
        """``image`` and ``patch`` in pixels a side; ``blocks`` keep the width; ``eps`` of the norm behind them."""
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, (image // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.register_buffer("mean", torch.tensor(MEAN).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).reshape(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 RGB ``[batch, image, image, 3]`` to float32 ``[batch, 1 + patches, width]``."""
        x = (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.std
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        features: Tensor = self.norm(x)
        return features


class Attention(nn.Module):
    """BERT's attention: what was read is added, then normed. ``source`` is the width of what is read."""

    def __init__(self, width: int, source: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(source, width)
        self.v = nn.Linear(source, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, source: Tensor, bias: Tensor | None) -> Tensor:
        """``x`` ``[batch, words, width]`` reads ``[batch, positions, source]``; ``bias`` is added to the logits."""
        mixed = attend(self.q(x), self.k(source), self.v(source), self.heads, bias)
        attended: Tensor = self.norm(x + self.out(mixed))
        return attended
