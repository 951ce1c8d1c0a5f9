"""MobileNetV2 (width 1.0, 224 pixels) as the starting point of the image encoder.

Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", table 2. Weights come from a
dequantised TFLite file, so batch normalisation is already folded into the convolutions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

# (expansion, channels, repeats, stride of the first repeat)
_STEM_BLOCKS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1))
_TAIL_BLOCKS = ((6, 160, 3, 2), (6, 320, 1, 1))
STEM_CHANNELS = 96
STEM_SIDE = 14
FEATURES = 1280
REGION_SIDE = 7
CLASSES = 1001


class SameConv(nn.Module):
    """A convolution with TFLite's SAME padding (one more at the far end on stride 2), then optionally ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, depthwise: bool = False, clip: bool = True
    ):
        super().__init__()
        groups = inputs if depthwise else 1
        padding = kernel // 2 if stride == 1 else 0
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups)
        self.extra = stride > 1 and kernel > 1
        self.clip = clip

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(F.pad(x, (0, 1, 0, 1)) if self.extra else x)
        return y.clamp(0.0, 6.0) if self.clip else y


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; added to its input where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        hidden = inputs * expansion
        layers = [SameConv(inputs, hidden, 1)] if expansion > 1 else []
        layers += [SameConv(hidden, hidden, 3, stride, depthwise=True), SameConv(hidden, outputs, 1, clip=False)]
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """``stem``: pixels to ``[batch, 96, 14, 14]``; ``tail``: on to ``[batch, 1280, 7, 7]``; ``classifier``: logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(SameConv(3, 32, 3, 2), *_blocks(32, _STEM_BLOCKS))
        self.tail = nn.Sequential(*_blocks(STEM_CHANNELS, _TAIL_BLOCKS), SameConv(320, FEATURES, 1))
        self.classifier = nn.Linear(FEATURES, CLASSES)

    def pixels_to_stem(self, image: Tensor) -> Tensor:
        """``image``: ``[batch, height, width, 3]`` uint8 RGB; returns ``[batch, 96, height / 16, width / 16]``."""
        x = image.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0
        y: Tensor = self.stem(x)
        return y

    def forward(self, image: Tensor) -> Tensor:
        """Class logits ``[batch, 1001]`` (0 is the background class) for uint8 RGB ``[batch, 224, 224, 3]``."""
        y: Tensor = self.classifier(self.tail(self.pixels_to_stem(image)).mean((2, 3)))
        return y


def load_mobilenet(path: Path) -> MobileNetV2:
    """The network with the weights of an ``lNN_w``/``lNN_b`` archive (TFLite layouts, in execution order)."""
    network = MobileNetV2()
    targets = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    with np.load(path) as arrays:
        count = sum(name.endswith("_w") for name in arrays.files)
        if count != len(targets):
            raise ValueError(f"{path} holds {count} layers, MobileNetV2 has {len(targets)}")
        for index, target in enumerate(targets):
            weight = _torch_layout(arrays[f"l{index:02d}_w"].astype(np.float32), target)
            target.weight.data.copy_(torch.from_numpy(weight))
            bias = target.get_parameter("bias")
            bias.data.copy_(torch.from_numpy(arrays[f"l{index:02d}_b"].astype(np.float32)))
    return network.eval()


def _torch_layout(weight: NDArray[np.float32], target: nn.Conv2d | nn.Linear) -> NDArray[np.float32]:
    if isinstance(target, nn.Linear):
        return weight.reshape(target.weight.shape)
    if target.groups > 1:
        return np.ascontiguousarray(weight.transpose(3, 0, 1, 2))
    return np.ascontiguousarray(weight.transpose(0, 3, 1, 2))


def _blocks(inputs: int, plan: tuple[tuple[int, int, int, int], ...]) -> list[InvertedResidual]:
    blocks = []
    for expansion, outputs, repeats, stride in plan:
        for repeat in range(repeats):
            blocks.append(InvertedResidual(inputs, outputs, stride if repeat == 0 else 1, expansion))
            inputs = outputs
    return blocks
