"""MANIQA: multi-dimension attention network for no-reference image quality (Yang et al., CVPRW 2022).

A ViT's middle blocks give a feature map; two stages of transposed attention (over channels) and Swin blocks (over
windows) condense it; each position then votes with a score and a weight (the paper's dual-branch patch weighting).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TAPS = (6, 7, 8, 9)
"""The ViT blocks whose outputs are used; later ones are not computed."""
_HEAD_WIDTH = 64
_MASKED = -100.0


@dataclass(frozen=True)
class Shape:
    """Sizes of the network; the defaults are the published one's (ViT-B/8 at 224, 28 x 28 positions)."""

    image: int = 224
    patch: int = 8
    vit_width: int = 768
    vit_hidden: int = 3072
    widths: tuple[int, int] = (768, 384)
    """Channels after the first and the second stage."""
    hidden: int = 768
    """Of the Swin blocks' perceptrons."""
    attentions: int = 2
    """Channel attention blocks a stage."""
    window: int = 4
    heads: tuple[int, ...] = (4, 4)
    depths: tuple[int, ...] = (2, 2)
    """Heads, and blocks, of each Swin layer."""
    scale: float = 0.8
    """Of a Swin layer's contribution: 0.8 for the KonIQ and KADID checkpoints, 0.13 for PIPAL's. Not in the file."""

    def __post_init__(self) -> None:
        if self.image % self.patch or self.side % self.window or self.side <= self.window:
            raise ValueError(f"{self.side} positions a side do not divide into windows of {self.window}")
        if self.vit_width % _HEAD_WIDTH or any(width % heads for width in self.widths for heads in self.heads):
            raise ValueError("widths must be multiples of their heads")

    @property
    def side(self) -> int:
        """Positions along each side of the feature map."""
        return self.image // self.patch


class Tower(nn.Module):
    """Pixels to one score and one weight for each position; MANIQA and MA-AGIQA share it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.side = shape.side
        self.vit = _Vit(shape)
        self.stage1 = _Stage(shape, len(TAPS) * shape.vit_width, shape.widths[0])
        self.stage2 = _Stage(shape, shape.widths[0], shape.widths[1])
        last = shape.widths[1]
        self.score = nn.Sequential(nn.Linear(last, last), nn.ReLU(), nn.Linear(last, 1), nn.ReLU())
        self.weight = nn.Sequential(nn.Linear(last, last), nn.ReLU(), nn.Linear(last, 1), nn.Sigmoid())

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB ``[batch, height, width, 3]`` to scores (0 and up) and weights (0..1).

        Both float32 ``[batch, positions]``, row by row.
        """
        x = (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - 0.5) / 0.5
        x = self.vit(x).transpose(1, 2)  # [batch, channels, positions]
        x = self.stage2(self.stage1(x)).transpose(1, 2)
        return self.score(x).squeeze(2), self.weight(x).squeeze(2)


class Maniqa(nn.Module):
    """Visual quality of pictures, or the plain mean over several crops of each."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.tower = Tower(shape)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 RGB ``[batch, height, width, 3]`` or ``[batch, crops, height, width, 3]`` to float32 ``[batch]``."""
        if pixels.dim() == 5:
            crops = pixels.shape[1]
            return self.quality(pixels.flatten(0, 1)).reshape(-1, crops).mean(dim=1)
        return self.quality(pixels)

    def quality(self, pixels: Tensor) -> Tensor:
        """uint8 RGB ``[batch, height, width, 3]`` to float32 ``[batch]``: the positions' weighted mean."""
        scores, weights = self.tower(pixels)
        quality: Tensor = (scores * weights).sum(dim=1) / weights.sum(dim=1)
        return quality


class _Vit(nn.Module):
    """Patch embedding and the blocks up to the last tap. Gives ``[batch, positions, taps * width]``."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, shape.vit_width, shape.patch, shape.patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, shape.vit_width))
        self.positions = nn.Parameter(torch.zeros(1, shape.side**2 + 1, shape.vit_width))
        self.blocks = nn.ModuleList(_VitBlock(shape) for _ in range(TAPS[-1] + 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(x.shape[0], -1, -1), x], dim=1) + self.positions
        taps = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in TAPS:
                taps.append(x[:, 1:])
        return torch.cat(taps, dim=2)


class _VitBlock(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.vit_width
        self.heads = width // _HEAD_WIDTH
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.fc1 = nn.Linear(width, shape.vit_hidden)
        self.fc2 = nn.Linear(shape.vit_hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = _split_heads(self.qkv(self.norm1(x)), self.heads)
        mixed = (q * _HEAD_WIDTH**-0.5 @ k.transpose(-2, -1)).softmax(dim=-1) @ v
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        refined: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return refined


class _Stage(nn.Module):
    """Attention over channels, a 1 x 1 convolution, Swin layers; ``[batch, channels, positions]`` in and out."""

    def __init__(self, shape: Shape, channels: int, width: int) -> None:
        super().__init__()
        self.side, self.scale = shape.side, shape.scale
        self.attention = nn.ModuleList(_ChannelAttention(shape.side**2) for _ in range(shape.attentions))
        self.reduce = nn.Conv2d(channels, width, 1)
        self.layers = nn.ModuleList(
            _SwinLayer(shape, width, heads, depth) for heads, depth in zip(shape.heads, shape.depths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.attention:
            x = block(x)
        x = self.reduce(torch.unflatten(x, 2, (self.side, self.side))).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = self.scale * layer(x) + x
        return x.transpose(1, 2)


class _ChannelAttention(nn.Module):
    """The paper's transposed attention block: every channel attends to every channel."""

    def __init__(self, positions: int) -> None:
        super().__init__()
        self.q = nn.Linear(positions, positions)
        self.k = nn.Linear(positions, positions)
        self.v = nn.Linear(positions, positions)

    def forward(self, x: Tensor) -> Tensor:
        channels, positions = x.shape[1:]
        mixed = (self.q(x) * positions**-0.5 @ self.k(x).transpose(1, 2)).softmax(dim=-1) @ self.v(x)
        # The transpose before the reshape mixes channels with positions. The released weights were trained with it.
        scrambled: Tensor = mixed.transpose(1, 2).reshape(-1, channels, positions)
        return x + scrambled


class _SwinLayer(nn.Module):
    """Swin blocks, every second one with shifted windows, then a 3 x 3 convolution; ``[batch, positions, width]``."""

    def __init__(self, shape: Shape, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.side = shape.side
        self.blocks = nn.ModuleList(
            _SwinBlock(shape, width, heads, shape.window // 2 if number % 2 else 0) for number in range(depth)
        )
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        x = torch.unflatten(x.transpose(1, 2), 2, (self.side, self.side))
        return F.relu(self.conv(x)).flatten(2).transpose(1, 2)


class _SwinBlock(nn.Module):
    """Attention inside windows with a relative position bias (Liu et al., ICCV 2021), then a perceptron."""

    index: Tensor
    mask: Tensor

    def __init__(self, shape: Shape, width: int, heads: int, shift: int) -> None:
        super().__init__()
        self.side, self.window, self.heads, self.shift = shape.side, shape.window, heads, shift
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.bias_table = nn.Parameter(torch.zeros((2 * shape.window - 1) ** 2, heads))
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, shape.hidden)
        self.fc2 = nn.Linear(shape.hidden, width)
        self.register_buffer("index", relative_index(shape.window))
        if shift:
            self.register_buffer("mask", shift_mask(shape.side, shape.window, shift))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self.norm1(x))
        refined: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return refined

    def _attend(self, x: Tensor) -> Tensor:
        """``[batch, positions, width]`` in and out."""
        x = torch.unflatten(x, 1, (self.side, self.side))
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        x = self._within_windows(_to_windows(x, self.window))
        x = _from_windows(x, self.side, self.window)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x.flatten(1, 2)

    def _within_windows(self, x: Tensor) -> Tensor:
        """``[batch * windows, window ** 2, width]`` in and out."""
        q, k, v = _split_heads(self.qkv(x), self.heads)
        bias = self.bias_table[self.index].permute(2, 0, 1)
        logits = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1) + bias
        if self.shift:
            logits = torch.unflatten(logits, 0, (-1, self.mask.shape[0])) + self.mask[:, None]
            logits = logits.flatten(0, 1)
        mixed: Tensor = self.proj((logits.softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        return mixed


def relative_index(window: int) -> Tensor:
    """Row of the bias table for each pair of positions in a window: int64 ``[window ** 2, window ** 2]``."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    down = rows.flatten()[:, None] - rows.flatten()[None]
    right = columns.flatten()[:, None] - columns.flatten()[None]
    return (down + window - 1) * (2 * window - 1) + right + window - 1


def shift_mask(side: int, window: int, shift: int) -> Tensor:
    """What keeps positions apart that only the cyclic shift brought into one window.

    float32 ``[windows, window ** 2, window ** 2]``: 0 for neighbours, -100 for strangers.
    """
    band = torch.zeros(side)
    band[side - window : side - shift], band[side - shift :] = 1, 2
    region = _to_windows((3 * band[:, None] + band[None])[None, :, :, None], window).squeeze(2)
    return (region[:, :, None] != region[:, None]).to(torch.float32) * _MASKED


def _to_windows(x: Tensor, window: int) -> Tensor:
    """``[batch, side, side, width]`` to ``[batch * windows, window ** 2, width]``."""
    x = torch.unflatten(torch.unflatten(x, 2, (-1, window)), 1, (-1, window))
    # [batch, rows, window, columns, window, width]
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _from_windows(x: Tensor, side: int, window: int) -> Tensor:
    """``[batch * windows, window ** 2, width]`` to ``[batch, side, side, width]``."""
    count = side // window
    x = x.reshape(-1, count, count, window, window, x.shape[-1])
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """``[batch, positions, 3 * width]`` to three of ``[batch, heads, positions, width / heads]``."""
    q, k, v = (torch.unflatten(part, 2, (heads, -1)).transpose(1, 2) for part in qkv.chunk(3, dim=2))
    return q, k, v
