"""ELIQ's scoring module: gated fusion and the quality query transformer (arXiv 2602.03558, eq. 9-15).

It takes what a large multimodal model says when it is asked about technical quality, aesthetic quality and alignment
(eq. 6-8), and gives two scores. The paper leaves open the sizes of the small networks, the number of layers and heads,
and where norms stand; those are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Shape:
    """Sizes of the scoring module. ``feature`` is the LMM's hidden size h; ``width`` is d_model of eq. 14."""

    feature: int = 4096
    hidden: int = 1024
    width: int = 512
    layers: int = 2
    heads: int = 8


class GatedFusion(nn.Module):
    """Technical and aesthetic embeddings to one visual embedding (eq. 9-11)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        both = 2 * shape.feature
        self.technical_gate = nn.Linear(both, shape.feature, bias=False)
        self.aesthetic_gate = nn.Linear(both, shape.feature, bias=False)
        self.mix = nn.Sequential(nn.Linear(both, shape.hidden), nn.GELU(), nn.Linear(shape.hidden, shape.feature))

    def forward(self, technical: Tensor, aesthetic: Tensor) -> Tensor:
        """float32 ``[batch, feature]`` each, and so is the outcome."""
        both = torch.cat([technical, aesthetic], dim=1)
        gated = [
            technical * self.technical_gate(both).sigmoid(),
            aesthetic * self.aesthetic_gate(both).sigmoid(),
        ]
        visual: Tensor = self.mix(torch.cat(gated, dim=1))
        return visual


class EncoderLayer(nn.Module):
    """Self-attention and a network of two layers, each behind a norm and beside a skip connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attention_output = nn.Linear(width, width)
        self.network_norm = nn.LayerNorm(width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """float32 ``[batch, tokens, width]``."""
        length, width = tokens.shape[1:]
        parts = self.query_key_value(self.attention_norm(tokens)).reshape(
            -1, length, 3, self.heads, width // self.heads
        )
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).reshape(-1, length, width)
        tokens = tokens + self.attention_output(attended)
        encoded: Tensor = tokens + self.network(self.network_norm(tokens))
        return encoded


class Scorer(nn.Module):
    """Features to visual quality and alignment, unbounded, higher is better (eq. 9-15).

    As the paper's content token holds the alignment embedding too (eq. 12-13), visual quality depends on the prompt.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        content = 2 * shape.feature
        self.fusion = GatedFusion(shape)
        self.queries = nn.Parameter(torch.zeros(2, content))
        self.project = nn.Linear(content, shape.width, bias=False)
        self.positions = nn.Parameter(torch.zeros(3, shape.width))
        self.layers = nn.ModuleList(EncoderLayer(shape.width, shape.heads) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width)
        self.visual_head, self.alignment_head = (
            nn.Sequential(nn.Linear(shape.width, shape.width), nn.GELU(), nn.Linear(shape.width, 1)) for _ in range(2)
        )

    def forward(self, technical: Tensor, aesthetic: Tensor, alignment: Tensor) -> tuple[Tensor, Tensor]:
        """Visual quality and alignment, float32 ``[batch]`` each.

        Args:
            technical: the LMM's answer about technical quality, float32 ``[batch, feature]``.
            aesthetic: about aesthetic quality, alike.
            alignment: about how the picture matches its prompt, alike.
        """
        content = torch.cat([self.fusion(technical, aesthetic), alignment], dim=1)
        queries = self.queries.expand(content.shape[0], -1, -1)
        tokens = self.project(torch.cat([content[:, None], queries], dim=1)) + self.positions
        for layer in self.layers:
            tokens = layer(tokens)
        tokens = self.norm(tokens)
        visual: Tensor = self.visual_head(tokens[:, 1]).squeeze(1)
        matching: Tensor = self.alignment_head(tokens[:, 2]).squeeze(1)
        return visual, matching
