"""BRISQUE: a support vector regression on the statistics of the whole picture at two scales.

Source: Mittal, Moorthy, Bovik, "No-reference image quality assessment in the spatial domain" (IEEE TIP 2012), with the
window, borders and order of features of the authors' published model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gamma
from torch import Tensor, nn

from critiq_exporters.families.natural_scene.statistics import (
    SHAPES,
    AsymmetricGaussian,
    Nearest,
    constant,
    gaussian_taps,
    halve,
    normalise,
    to_luma,
    with_products,
)

FEATURES = 36


@dataclass(frozen=True)
class Regression:
    """A support vector regression with a Gaussian kernel, and the ranges that its features are scaled from."""

    lowest: NDArray[np.float64]
    highest: NDArray[np.float64]
    """Of each feature, ``[36]``: they become ``target[0]`` and ``target[1]``."""
    target: tuple[float, float]
    vectors: NDArray[np.float64]
    """Support vectors, ``[count, 36]``."""
    weights: NDArray[np.float64]
    """``[count]``."""
    gamma: float
    """Of the kernel ``exp(-gamma |x - v|^2)``."""
    offset: float
    """Taken off the weighted sum (``rho`` in libsvm)."""


class BrisqueFeatures(nn.Module):
    """Pictures to the 36 features of their luminance."""

    def __init__(self) -> None:
        super().__init__()
        self.fit = AsymmetricGaussian()
        ratio = gamma(1 / SHAPES) * gamma(3 / SHAPES) / gamma(2 / SHAPES) ** 2
        self.finder = Nearest(ratio[::-1].copy())
        self.register_buffer("shapes", torch.from_numpy(SHAPES[::-1].copy()))
        self.shapes: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 RGB ``[batch, height, width, 3]`` with even sides to float64 ``[batch, 36]``; NaN where all is flat."""
        grey = to_luma(pixels, "full")
        taps = gaussian_taps(7, 7 / 6)
        features: list[Tensor] = []
        for picture in (grey, halve(grey)):
            normal, _ = normalise(picture, taps, "zero")
            square = (normal * normal).mean((1, 2))
            shape_of_all = self.shapes[self.finder(square / normal.abs().mean((1, 2)) ** 2)]
            shape, mean, left, right = self.fit.deviations(with_products(normal)[:, 1:])
            products = torch.stack([shape, mean, left**2, right**2], dim=2).flatten(1)
            features.append(torch.cat([torch.stack([shape_of_all, square], dim=1), products], dim=1))
        return torch.cat(features, dim=1)


class Brisque(nn.Module):
    """Pictures to their BRISQUE: about 0 to 100, lower is better."""

    def __init__(self, regression: Regression) -> None:
        super().__init__()
        self.features = BrisqueFeatures()
        low, high = regression.target
        slope = (high - low) / (regression.highest - regression.lowest)
        self.register_buffer("slope", torch.from_numpy(slope))
        self.register_buffer("shift", torch.from_numpy(low - slope * regression.lowest))
        self.register_buffer("vectors", torch.from_numpy(regression.vectors))
        self.register_buffer("weights", torch.from_numpy(regression.weights))
        self.slope: Tensor
        self.shift: Tensor
        self.vectors: Tensor
        self.weights: Tensor
        self.register_buffer("gamma", constant([regression.gamma]))
        self.register_buffer("offset", constant([regression.offset]))
        self.gamma: Tensor
        self.offset: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 RGB ``[batch, height, width, 3]`` with even sides to float64 ``[batch]``; NaN where all is flat."""
        return self.regress(self.features(pixels))

    def regress(self, features: Tensor) -> Tensor:
        """Float64 ``[batch, 36]`` to ``[batch]``."""
        scaled = features * self.slope + self.shift
        distance = ((scaled.unsqueeze(1) - self.vectors) ** 2).sum(2)
        return (torch.exp(-self.gamma * distance) * self.weights).sum(1) - self.offset
