"""NIQE: how far the statistics of a picture's blocks are from those of clean photographs.

Source: Mittal, Soundararajan, Bovik, "Making a completely blind image quality analyzer" (IEEE Signal Processing Letters
2013), with the block size, window and pooling of the authors' published model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from critiq_exporters.families.natural_scene.distance import covariance, quadratic_form
from critiq_exporters.families.natural_scene.statistics import (
    AsymmetricGaussian,
    Luma,
    gaussian_taps,
    halve,
    niqe_features,
    normalise,
    to_blocks,
    to_luma,
)

BLOCK = 96
FEATURES = 36


@dataclass(frozen=True)
class CleanModel:
    """The Gaussian of the features of clean photographs' blocks."""

    mean: NDArray[np.float64]
    """``[36]``."""
    covariance: NDArray[np.float64]
    """``[36, 36]``."""


class NiqeFeatures(nn.Module):
    """Pictures to the features of their blocks."""

    def __init__(self, luma: Luma = "full") -> None:
        super().__init__()
        self.luma: Luma = luma
        self.fit = AsymmetricGaussian()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB ``[batch, height, width, 3]``, sides multiples of 96, to float64 ``[batch, blocks, 36]``.

        And the blocks' sharpness (mean local deviation), ``[batch, blocks]``. The features of a block without texture
        are NaN.
        """
        grey = to_luma(pixels, self.luma)
        taps = gaussian_taps(7, 7 / 6)
        normal, deviation = normalise(grey, taps, "replicate")
        coarse, _ = normalise(halve(grey), taps, "replicate")
        features = [
            niqe_features(self.fit, to_blocks(normal, BLOCK)),
            niqe_features(self.fit, to_blocks(coarse, BLOCK // 2)),
        ]
        return torch.cat(features, dim=2), to_blocks(deviation, BLOCK).mean((2, 3))


class Niqe(nn.Module):
    """Pictures to their NIQE: 0 and up, lower is better."""

    def __init__(self, clean: CleanModel, luma: Luma = "full") -> None:
        super().__init__()
        self.features = NiqeFeatures(luma)
        self.register_buffer("mean", torch.from_numpy(clean.mean))
        self.register_buffer("covariance", torch.from_numpy(clean.covariance))
        self.mean: Tensor
        self.covariance: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 RGB ``[batch, height, width, 3]``, sides multiples of 96, to float64 ``[batch]``.

        NaN for a picture with fewer than two blocks that have any texture.
        """
        features, _ = self.features(pixels)
        unknown = features.isnan()
        mean = torch.where(unknown, 0.0, features).sum(1) / (~unknown).to(features.dtype).sum(1)
        spread = (self.covariance + covariance(features, ~unknown.any(2))) / 2
        return quadratic_form(spread, (self.mean - mean).unsqueeze(2)).squeeze(1).sqrt()
