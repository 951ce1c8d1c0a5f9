"""NIMA: a classification network whose last layer gives the distribution of people's ratings from 1 to 10.

Sources: Talebi and Milanfar, "NIMA: neural image assessment" (IEEE TIP 2018); Simonyan and Zisserman (2015) for VGG16;
Sandler et al., "MobileNetV2" (CVPR 2018).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RATINGS = 10
SIDE = 224
VGG_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG_POOLS = (1, 3, 6, 9, 12)
"""After these of VGG16's convolutions the picture is halved."""
MOBILENET_STRIDES = (1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1)
"""Of MobileNetV2's 17 blocks."""
_MOBILENET_OUTPUTS = (16, 24, 24, 32, 32, 32, 64, 64, 64, 64, 96, 96, 96, 160, 160, 160, 320)
_IMAGENET_MEAN, _IMAGENET_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Block:
    """Channels of one inverted residual block; ``hidden`` is what the depthwise convolution works on."""

    inputs: int
    hidden: int
    outputs: int
    stride: int
    expands: bool = True
    """Whether a 1 x 1 convolution stands before the depthwise one."""


def published_blocks(first_expands: bool) -> tuple[Block, ...]:
    """MobileNetV2 at width 1."""
    inputs = (32, *_MOBILENET_OUTPUTS[:-1])
    return tuple(
        Block(width, width * (6 if number else 1), outputs, stride, number > 0 or first_expands)
        for number, (width, outputs, stride) in enumerate(
            zip(inputs, _MOBILENET_OUTPUTS, MOBILENET_STRIDES, strict=True)
        )
    )


class Nima(nn.Module):
    """Pictures to the mean and the spread of the ratings that people would give them."""

    def __init__(self, backbone: nn.Module, features: int, imagenet: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(features, RATINGS)
        mean, deviation = (_IMAGENET_MEAN, _IMAGENET_DEVIATION) if imagenet else ((0.0,) * 3, (1.0,) * 3)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("deviation", torch.tensor(deviation)[:, None, None], persistent=False)
        self.register_buffer("ratings", torch.arange(1.0, RATINGS + 1), persistent=False)
        self.mean: Tensor
        self.deviation: Tensor
        self.ratings: Tensor

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB ``[batch, 224, 224, 3]``, or ``[batch, 1, 224, 224, 3]``, to two float32 ``[batch]``.

        The mean rating, 1 to 10, and its standard deviation.
        """
        distribution = self.distribution(pixels)
        mean = distribution @ self.ratings
        variance = (distribution * (self.ratings - mean.unsqueeze(1)) ** 2).sum(1)
        return mean, variance.sqrt()

    def distribution(self, pixels: Tensor) -> Tensor:
        """As :meth:`forward`, to the share of people who would give each rating: float32 ``[batch, 10]``."""
        if pixels.dim() == 5:
            pixels = pixels.squeeze(1)
        x = (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - self.mean) / self.deviation
        shares: Tensor = self.head(self.backbone(x)).softmax(dim=1)
        return shares


class Vgg16(nn.Module):
    """VGG16's convolutions: ``[batch, 3, 224, 224]`` to ``[batch, 49 * channels]``, channel by channel."""

    def __init__(self, widths: Sequence[int] = VGG_WIDTHS) -> None:
        super().__init__()
        inputs = (3, *widths[:-1])
        self.layers = nn.ModuleList(
            nn.Conv2d(width, outputs, 3, padding=1) for width, outputs in zip(inputs, widths, strict=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate(self.layers):
            x = layer(x).relu()
            if number in VGG_POOLS:
                x = F.max_pool2d(x, 2)
        return x.flatten(1)


class MobileNetV2(nn.Module):
    """``[batch, 3, height, width]`` to ``[batch, features]``: means over the last map.

    ``ceiling`` cuts the first and the last layer's activations (6, or nothing in some public code).
    """

    def __init__(self, blocks: Sequence[Block], features: int = 1280, ceiling: float | None = 6.0) -> None:
        super().__init__()
        self.stem = ConvNorm(3, blocks[0].inputs, 3, stride=2, ceiling=ceiling)
        self.blocks = nn.ModuleList(InvertedResidual(block) for block in blocks)
        self.last = ConvNorm(blocks[-1].outputs, features, 1, ceiling=ceiling)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        last: Tensor = self.last(x)
        return last.mean((2, 3))


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to its input where the shapes agree."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        layers = [ConvNorm(block.inputs, block.hidden, 1)] if block.expands else []
        layers += [
            ConvNorm(block.hidden, block.hidden, 3, block.stride, groups=block.hidden),
            ConvNorm(block.hidden, block.outputs, 1, linear=True),
        ]
        self.layers = nn.Sequential(*layers)
        self.residual = block.stride == 1 and block.inputs == block.outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class ConvNorm(nn.Module):
    """A convolution, batch normalisation with fixed statistics, and a ReLU cut at ``ceiling`` unless ``linear``."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        stride: int = 1,
        groups: int = 1,
        ceiling: float | None = 6.0,
        linear: bool = False,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        # Parameters, not buffers: a checkpoint has to give them.
        self.weight, self.bias = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))
        self.mean, self.variance = nn.Parameter(torch.zeros(outputs)), nn.Parameter(torch.ones(outputs))
        self.linear, self.ceiling = linear, ceiling

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(self.conv(x), self.mean, self.variance, self.weight, self.bias, training=False)
        if self.linear:
            return x
        return x.relu() if self.ceiling is None else x.clamp(0.0, self.ceiling)
