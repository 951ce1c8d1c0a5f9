"""IL-NIQE's filters: derivatives of a Gaussian, and log-Gabor filters (Field, 1987) in the frequency domain."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from critiq_exporters.families.natural_scene.statistics import without_rounding

SCALES, ORIENTATIONS = 3, 4
_WAVELENGTH, _WAVELENGTH_SHRINK, _RATIO = 2.4, 0.87, 1.31
_BANDWIDTH, _ANGULAR = 0.55, 1.10


class GaussianDerivative(nn.Module):
    """Derivatives of a Gaussian over squares of ``side`` pixels, zero beyond their borders; not normalised.

    Multiplications with band matrices: onnxruntime is faster at them than at anything else in double precision.
    """

    def __init__(self, side: int, sigma: float) -> None:
        super().__init__()
        offsets = np.subtract.outer(np.arange(side), np.arange(side)).astype(np.float64)
        smooth = np.where(np.abs(offsets) <= math.ceil(3 * sigma), np.exp(-(offsets**2) / (2 * sigma**2)), 0.0)
        self.register_buffer("smooth", torch.from_numpy(smooth))
        self.register_buffer("derivative", torch.from_numpy(offsets * smooth))
        self.smooth: Tensor
        self.derivative: Tensor

    def forward(self, planes: Tensor) -> tuple[Tensor, Tensor]:
        """Float64 ``[..., side, side]`` to the derivatives to the right and down, of the same shape."""
        across = self.smooth @ planes @ self.derivative.T
        down = self.derivative @ planes @ self.smooth.T
        return without_rounding(across), without_rounding(down)


class LogGabor(nn.Module):
    """Three scales by four orientations over squares of ``side`` pixels, an even number, around their edges."""

    def __init__(self, side: int, scale: int) -> None:
        super().__init__()
        frequency = np.fft.fftfreq(side)
        down, across = np.meshgrid(frequency, frequency, indexing="ij")
        radius = np.hypot(down, across)
        radius[0, 0] = 1
        angle = np.arctan2(-down, across)
        shortest = _WAVELENGTH / scale**_WAVELENGTH_SHRINK
        spread = math.pi / ORIENTATIONS / _ANGULAR
        filters = []
        for step in range(SCALES):
            radial = np.exp(-(np.log(radius * shortest * _RATIO**step) ** 2) / (2 * math.log(_BANDWIDTH) ** 2))
            radial[0, 0] = 0
            for orientation in range(ORIENTATIONS):
                turned = angle - orientation * math.pi / ORIENTATIONS
                away = np.abs(np.arctan2(np.sin(turned), np.cos(turned)))
                filters.append(radial * np.exp(-(away**2) / (2 * spread**2)))
        self.register_buffer("filters", torch.from_numpy(np.stack(filters)))
        self.filters: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Float64 ``[batch, side, side]`` to ``[24, batch, side, side]``: real and imaginary parts in turns."""
        responses = torch.view_as_real(torch.fft.ifft2(self.filters.unsqueeze(1) * torch.fft.fft2(x)))
        return responses.permute(0, 4, 1, 2, 3).flatten(0, 1)
