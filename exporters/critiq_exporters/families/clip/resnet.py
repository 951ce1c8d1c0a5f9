"""CLIP's residual network: a ResNet with three stem convolutions, blurred strides and an attention pool.

Radford et al., ICML 2021, section 2.4. The pool's table of positions can be left out, as CLIP-IQA does (Wang et al.,
AAAI 2023): pictures then need no fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from critiq_exporters.families.clip.network import PictureTower, attend

_EXPANSION = 4
_STRIDE = 32
_HEAD_WIDTH = 64


@dataclass(frozen=True)
class ResnetShape:
    """Sizes of the network; the defaults are RN50's."""

    width: int = 64
    layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    image: int = 224
    embedding: int = 1024
    positions: bool = True
    """Whether the attention pool uses its table of positions; then pictures must be ``image`` pixels a side."""

    def __post_init__(self) -> None:
        if self.last % _HEAD_WIDTH:
            raise ValueError(f"a width of {self.last} does not divide into heads of {_HEAD_WIDTH}")

    @property
    def last(self) -> int:
        """Channels that the attention pool gets."""
        return self.width * 8 * _EXPANSION


class PictureResnet(PictureTower):
    """The picture tower that is a residual network."""

    def __init__(self, shape: ResnetShape) -> None:
        super().__init__()
        self.side, self.embedding = shape.image, shape.embedding
        width = shape.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.norm1 = _Norm(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.norm2 = _Norm(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.norm3 = _Norm(width)
        stages, channels = [], width
        for number, depth in enumerate(shape.layers):
            inner = width * 2**number
            blocks = [_Bottleneck(channels, inner, 2 if number else 1)]
            channels = inner * _EXPANSION
            blocks += [_Bottleneck(channels, inner, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.pool = _AttentionPool(shape)

    def forward(self, x: Tensor) -> Tensor:
        """float32 ``[batch, 3, height, width]`` to ``[batch, embedding]``."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        x = F.avg_pool2d(x, 2)
        for stage in self.stages:
            x = stage(x)
        pooled: Tensor = self.pool(x)
        return pooled


class _Bottleneck(nn.Module):
    """Where a stride is due, an average pool stands before the next convolution, so that nothing aliases."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels, inner, 1, bias=False)
        self.norm1 = _Norm(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.norm2 = _Norm(inner)
        self.conv3 = nn.Conv2d(inner, inner * _EXPANSION, 1, bias=False)
        self.norm3 = _Norm(inner * _EXPANSION)
        self.short_cut: nn.Module | None = None
        if stride > 1 or channels != inner * _EXPANSION:
            self.short_cut = nn.Conv2d(channels, inner * _EXPANSION, 1, bias=False)
            self.short_cut_norm = _Norm(inner * _EXPANSION)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        if self.short_cut is not None:
            x = self.short_cut_norm(self.short_cut(x))
        return F.relu(self.norm3(self.conv3(y)) + x)


class _AttentionPool(nn.Module):
    """The mean of all positions asks, all positions and the mean answer."""

    def __init__(self, shape: ResnetShape) -> None:
        super().__init__()
        width = shape.last
        self.heads = width // _HEAD_WIDTH
        self.uses_positions = shape.positions
        self.positions = nn.Parameter(torch.zeros((shape.image // _STRIDE) ** 2 + 1, width))
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, shape.embedding)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, channels, height, width]`` to ``[batch, embedding]``."""
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1)
        if self.uses_positions:
            x = x + self.positions
        pooled: Tensor = self.out(attend(self.q(x[:, :1]), self.k(x), self.v(x), self.heads)).squeeze(1)
        return pooled


class _Norm(nn.Module):
    """Batch norm with the statistics of training. All four are parameters, so that a checkpoint must have them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.mean = nn.Parameter(torch.zeros(channels), requires_grad=False)
        self.var = nn.Parameter(torch.ones(channels), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.mean, self.var, self.weight, self.bias, training=False, eps=1e-5)
