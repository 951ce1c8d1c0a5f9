"""CNN-IQA: one convolution, pooled to the largest and the smallest response of each filter, then a perceptron.

Source: Kang et al., "Convolutional neural networks for no-reference image quality assessment" (CVPR 2014), in the form
that public checkpoints have: colour, and the whole picture at once instead of grey patches of 32 x 32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CnnIqa(nn.Module):
    """Visual quality of pictures of any size that a filter fits into."""

    def __init__(self, filters: int = 50, kernel: int = 7, hidden: tuple[int, int] = (800, 800)) -> None:
        super().__init__()
        self.kernel = kernel
        self.filters = nn.Conv2d(3, filters, kernel)
        self.first = nn.Linear(2 * filters, hidden[0])
        self.second = nn.Linear(hidden[0], hidden[1])
        self.score = nn.Linear(hidden[1], 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 RGB ``[batch, height, width, 3]`` to float32 ``[batch]``, on the scale of the training data."""
        responses = self.filters(pixels.permute(0, 3, 1, 2).to(torch.float32) / 255)
        pooled = torch.cat([responses.amax((2, 3)), responses.amin((2, 3))], dim=1)
        quality: Tensor = self.score(self.second(self.first(pooled).relu()).relu())
        return quality.squeeze(1)
