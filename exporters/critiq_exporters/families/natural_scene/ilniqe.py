"""IL-NIQE: NIQE with colour, gradient and filter-bank statistics, and a distance for each block.

Source: Zhang, Zhang, Bovik, "A feature-enriched completely blind image quality evaluator" (IEEE TIP 2015), with the
constants and the order of features of the authors' published model.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from critiq_exporters.families.natural_scene.distance import covariance, quadratic_form
from critiq_exporters.families.natural_scene.filters import GaussianDerivative, LogGabor
from critiq_exporters.families.natural_scene.statistics import (
    AsymmetricGaussian,
    constant,
    decimate,
    gaussian_taps,
    niqe_features,
    normalise,
    to_blocks,
)
from critiq_exporters.families.natural_scene.weibull import fit_weibull

SIDE = 524
"""The published models squeeze pictures to this; what is over whole blocks is cut off."""
BLOCK = 84
FEATURES = 468
_OPPONENTS = [[0.30, 0.04, -0.35], [0.34, -0.60, 0.17], [0.06, 0.63, 0.27]]
"""From red, green and blue; the last is the luminance."""
_LARGEST_FEATURE = 10_000.0
_DERIVATIVE_SIGMA, _DERIVATIVE_SHRINK = 1.66, 0.28
_LOG_FLOOR, _EPSILON = [1e-5], [float(np.finfo(np.float64).eps)]
_DOWNSAMPLING_SIGMA = 0.9


@dataclass(frozen=True)
class CleanModel:
    """The Gaussian of the projected features of clean photographs' blocks."""

    mean: NDArray[np.float64]
    """``[components]``."""
    covariance: NDArray[np.float64]
    """``[components, components]``."""
    centre: NDArray[np.float64]
    """Mean of the features before the projection, ``[468]``."""
    axes: NDArray[np.float64]
    """Principal axes, ``[468, components]``."""


class IlniqeFeatures(nn.Module):
    """Squares of ``side`` pixels to the features of their blocks: 36 at the published size.

    Raises ``ValueError`` for a side that holds fewer than 2 x 2 blocks.
    """

    def __init__(self, side: int = SIDE) -> None:
        super().__init__()
        if side < 2 * BLOCK:
            raise ValueError(f"a side of {side} pixels holds less than two blocks of {BLOCK}")
        self.kept = side // BLOCK * BLOCK
        self.fit = AsymmetricGaussian()
        self.banks = nn.ModuleList(LogGabor(self.kept // scale, scale) for scale in (1, 2))
        self.gradients = nn.ModuleList(
            GaussianDerivative(self.kept // scale, _DERIVATIVE_SIGMA / scale**_DERIVATIVE_SHRINK) for scale in (1, 2)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB ``[batch, side, side, 3]`` to float64 ``[batch, blocks, 468]``.

        And the blocks' sharpness (mean local deviation), ``[batch, blocks]``. Features of a flat block are not finite.
        """
        rgb = pixels[:, : self.kept, : self.kept].to(torch.float64).permute(3, 0, 1, 2)
        opponents = torch.tensordot(constant(np.array(_OPPONENTS)), rgb, dims=1)
        fine, sharpness = self._of_scale(rgb, opponents, 1)
        coarse, _ = self._of_scale(_halve(rgb), _halve(opponents), 2)
        return torch.cat([fine, coarse], dim=2), sharpness

    def _of_scale(self, rgb: Tensor, opponents: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """Planes ``[3, batch, height, width]`` to 234 features a block."""
        taps = gaussian_taps(5, 5 / 6)
        normal, deviation = normalise(opponents[2], taps, "replicate")
        responses = self.banks[scale - 1](opponents[2])  # [24, batch, height, width]: real and imaginary parts in turns
        across, down = self.gradients[scale - 1](opponents)
        across_bank, down_bank = self.gradients[scale - 1](responses)
        side = BLOCK // scale
        colours = _to_blocks(_log_opponents(rgb), side)
        gaussian = [
            _interleaved(_to_blocks(across, side), _to_blocks(down, side)),
            _to_blocks(responses, side),
            _interleaved(_to_blocks(across_bank, side), _to_blocks(down_bank, side)),
        ]
        features = [
            niqe_features(self.fit, to_blocks(normal, side)),
            _weibull_features(_to_blocks(_magnitude(across, down), side)),
            torch.stack([colours.mean((3, 4)), colours.var((3, 4), correction=0)], dim=3).flatten(2),
            self._gaussian_features(torch.cat(gaussian, dim=2)),
            _weibull_features(_to_blocks(_magnitude(across_bank, down_bank), side)),
        ]
        return torch.cat(features, dim=2), to_blocks(deviation, side).mean((2, 3))

    def _gaussian_features(self, blocks: Tensor) -> Tensor:
        """``[batch, blocks, maps, side, side]`` to ``[batch, blocks, 2 * maps]``: shape and mean scale of each."""
        shape, _, left, right = self.fit.scales(blocks)
        return torch.stack([shape, (left + right) / 2], dim=3).flatten(2)


class Ilniqe(nn.Module):
    """Pictures to their IL-NIQE: 0 and up, lower is better."""

    def __init__(self, clean: CleanModel, side: int = SIDE) -> None:
        super().__init__()
        self.features = IlniqeFeatures(side)
        for name in ("mean", "covariance", "centre", "axes"):
            self.register_buffer(name, torch.from_numpy(getattr(clean, name)))
        self.mean: Tensor
        self.covariance: Tensor
        self.centre: Tensor
        self.axes: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 RGB ``[batch, side, side, 3]`` to float64 ``[batch]``. NaN where fewer than two blocks have texture."""
        features, _ = self.features(pixels)
        return self.distance(features)

    def distance(self, features: Tensor) -> Tensor:
        """Float64 ``[batch, blocks, 468]`` to ``[batch]``: the mean of the blocks' distances."""
        projected = (features.clamp(max=_LARGEST_FEATURE) - self.centre) @ self.axes
        known = ~projected.isnan()
        mean = torch.where(known, projected, 0.0).sum(1, keepdim=True) / known.to(torch.float64).sum(1, keepdim=True)
        spread = (self.covariance + covariance(projected, known.all(2))) / 2
        # A block without texture stands at the mean of the others.
        difference = (torch.where(known, projected, mean) - self.mean).transpose(1, 2)
        return quadratic_form(spread, difference).sqrt().mean(1)


def _halve(planes: Tensor) -> Tensor:
    """``[..., height, width]`` smoothed by an even-sized Gaussian, every second pixel."""
    return decimate(planes, gaussian_taps(6, _DOWNSAMPLING_SIGMA))


def _magnitude(across: Tensor, down: Tensor) -> Tensor:
    return (across * across + down * down).sqrt() + constant(_EPSILON)


def _log_opponents(rgb: Tensor) -> Tensor:
    """Intensity, blue against yellow, red against green, from logarithms; ``[3, batch, height, width]`` in and out."""
    logs = (rgb + constant(_LOG_FLOOR)).log()
    red, green, blue = (logs - logs.mean((2, 3), keepdim=True)).unbind(0)
    third, sixth, half = constant([3.0]).sqrt(), constant([6.0]).sqrt(), constant([2.0]).sqrt()
    return torch.stack([(red + green + blue) / third, (red + green - 2 * blue) / sixth, (red - green) / half])


def _weibull_features(blocks: Tensor) -> Tensor:
    """``[batch, blocks, maps, side, side]`` to ``[batch, blocks, 2 * maps]``: scale and shape of each."""
    return torch.stack(fit_weibull(blocks), dim=3).flatten(2)


def _to_blocks(planes: Tensor, side: int) -> Tensor:
    """``[maps, batch, height, width]`` to ``[batch, blocks, maps, side, side]``."""
    maps, batch = planes.shape[:2]
    blocks = to_blocks(planes.flatten(0, 1), side)
    return blocks.reshape(maps, batch, -1, side, side).permute(1, 2, 0, 3, 4)


def _interleaved(first: Tensor, second: Tensor) -> Tensor:
    """Maps of ``[batch, blocks, maps, side, side]`` in turns."""
    return torch.stack([first, second], dim=3).flatten(2, 3)
