"""Natural-scene statistics inside the graph: how far local contrast, edges and colour are from what cameras record.

Sources: Mittal et al., "Making a completely blind image quality analyzer" (NIQE: the MSCN coefficients, their
generalised Gaussian fits, the products of neighbours) and Zhang et al., "A feature-enriched completely blind image
quality evaluator" (IL-NIQE: colour and gradient statistics). The fits use moment ratios and a fixed interpolation
table, so that everything is plain arithmetic that exports to ONNX.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import gamma
from torch import Tensor, nn
from torch.nn import functional as F

_PLANES = ((0.299, 0.587, 0.114), (1.0, -1.0, 0.0), (0.5, 0.5, -1.0))
"""Luminance and two opponent colours."""
_SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
_EPSILON = 1e-6
_ZERO = 1e-3
"""Products smaller than this are flat areas, whose sign is rounding."""
SCALES = 2
FEATURES = SCALES * (2 + 4 * len(_SHIFTS) + 4 + 4) + 10
"""Length of the statistics vector."""


class _ShapeTable(nn.Module):
    """Shape of a generalised Gaussian from E[x^2] / E[|x|]^2, by linear interpolation written as a sum of hinges.

    The ratio is Gamma(1/a) Gamma(3/a) / Gamma(2/a)^2 for shape ``a``; shapes are cut to 0.2..8.
    """

    def __init__(self, knots: int = 48) -> None:
        super().__init__()
        shape = np.geomspace(8.0, 0.2, knots)
        position = np.log(gamma(1 / shape) * gamma(3 / shape) / gamma(2 / shape) ** 2)
        slope = np.diff(np.log(shape)) / np.diff(position)
        self.register_buffer("position", torch.tensor(position[:-1], dtype=torch.float32))
        self.register_buffer("bend", torch.tensor(np.diff(slope, prepend=0.0), dtype=torch.float32))
        self.position: Tensor
        self.bend: Tensor
        self.low, self.high = float(position[0]), float(position[-1])
        self.start = float(np.log(shape[0]))

    def forward(self, ratio: Tensor) -> Tensor:
        """Logarithm of the shape, for moment ratios of any shape of tensor."""
        position = ratio.clamp_min(_EPSILON).log().clamp(self.low, self.high)
        hinges = (position[..., None] - self.position).clamp_min(0.0)
        return self.start + (hinges * self.bend).sum(-1)


class SceneStatistics(nn.Module):
    """RGB float32 ``[batch, 3, height, width]`` in 0..255 to statistics float32 ``[batch, FEATURES]``.

    Sides must be even. Each entry is a bounded, roughly symmetric quantity (shapes and scales as logarithms).
    """

    def __init__(self) -> None:
        super().__init__()
        offsets = torch.arange(7, dtype=torch.float32) - 3
        window = torch.exp(-(offsets**2) / (2 * (7 / 6) ** 2))
        window = (window / window.sum()).reshape(1, 1, 7, 1)
        self.register_buffer("window", window.repeat(2 * len(_PLANES), 1, 1, 1))
        self.register_buffer("planes", torch.tensor(_PLANES)[:, :, None, None])
        self.window: Tensor
        self.planes: Tensor
        self.shape = _ShapeTable()

    def forward(self, rgb: Tensor) -> Tensor:
        parts = [*self._colour(rgb)]
        # Around mid-grey, so that the variance of flat areas does not drown in rounding.
        scaled = F.conv2d(rgb - 127.5, self.planes)
        for scale in range(SCALES):
            if scale > 0:
                scaled = F.avg_pool2d(scaled, 2)
            parts += self._scale(scaled)
        return torch.stack(parts, 1)

    def _scale(self, planes: Tensor) -> list[Tensor]:
        """The statistics of luminance and opponents ``[batch, 3, height, width]`` at one scale."""
        mean, square = self._smooth(torch.cat([planes, planes * planes], 1)).chunk(2, 1)
        deviation = (square - mean * mean).clamp_min(0.0).add(1e-2).sqrt()
        normal = (planes - mean) / (deviation + 1.0)
        log_shape, log_scale = self._fit(normal)
        parts = [*log_shape.unbind(1), *log_scale.unbind(1)]
        for down, right in _SHIFTS:
            parts += self._fit_asymmetric(_product(normal[:, :1], down, right))
        log_deviation = deviation[:, 0].add(1.0).log()
        average = log_deviation.mean((1, 2))
        spread = (log_deviation * log_deviation).mean((1, 2)) - average**2
        parts += [average, spread.clamp_min(0.0).add(_EPSILON).sqrt()]
        vertical = planes[:, :1, 1:, :-1] - planes[:, :1, :-1, :-1]
        horizontal = planes[:, :1, :-1, 1:] - planes[:, :1, :-1, :-1]
        log_shape, log_scale = self._fit(torch.cat([vertical, horizontal], 2))
        return [*parts, log_shape[:, 0], log_scale[:, 0]]

    def _smooth(self, x: Tensor) -> Tensor:
        x = F.pad(x, (3, 3, 3, 3), mode="replicate")
        x = F.conv2d(x, self.window, groups=self.window.shape[0])
        return F.conv2d(x, self.window.transpose(2, 3), groups=self.window.shape[0])

    def _fit(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Log shape and log scale of a zero-mean generalised Gaussian, ``[batch, channels]`` each."""
        square = (x * x).mean((2, 3)) + _EPSILON
        absolute = x.abs().mean((2, 3)) + _EPSILON
        return self.shape(square / absolute**2), 0.5 * square.log()

    def _fit_asymmetric(self, x: Tensor) -> list[Tensor]:
        """NIQE's four numbers for products of neighbours: log shape, mean, log scale on the left and on the right."""
        left, right = x.clamp_max(0.0), x.clamp_min(0.0)
        left_share = (x < -_ZERO).float().mean((1, 2, 3)) + 1e-3
        right_share = (x > _ZERO).float().mean((1, 2, 3)) + 1e-3
        left_square, right_square = (left * left).mean((1, 2, 3)), (right * right).mean((1, 2, 3))
        left_scale = (left_square / left_share + _EPSILON).sqrt()
        right_scale = (right_square / right_share + _EPSILON).sqrt()
        balance = left_scale / right_scale
        absolute = (right - left).mean((1, 2, 3)) + _EPSILON
        ratio = (left_square + right_square + _EPSILON) / absolute**2
        correction = (balance**2 + 1) ** 2 / ((balance**3 + 1) * (balance + 1))
        return [self.shape(ratio * correction), x.mean((1, 2, 3)), left_scale.log(), right_scale.log()]

    def _colour(self, rgb: Tensor) -> list[Tensor]:
        unit = rgb / 255.0
        red, green, blue = unit[:, 0], unit[:, 1], unit[:, 2]
        brightest, darkest = unit.amax(1), unit.amin(1)
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        saturation = (brightest - darkest) / (brightest + 0.05)
        parts: list[Tensor] = []
        for plane in (luminance, saturation, red - green, 0.5 * (red + green) - blue):
            mean = plane.mean((1, 2))
            parts += [mean, ((plane * plane).mean((1, 2)) - mean**2).clamp_min(0.0).add(1e-5).sqrt()]
        parts += [(brightest > 0.98).float().mean((1, 2)).sqrt(), (brightest < 0.02).float().mean((1, 2)).sqrt()]
        return parts


def _product(x: Tensor, down: int, right: int) -> Tensor:
    """Products of each coefficient with its neighbour ``down`` rows below and ``right`` columns to the right."""
    height, width = x.shape[-2:]
    if right < 0:
        return x[..., : height - down, -right:] * x[..., down:, : width + right]
    return x[..., : height - down, : width - right] * x[..., down:, right:]
