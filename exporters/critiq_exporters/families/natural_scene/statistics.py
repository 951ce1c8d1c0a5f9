"""The statistics that NIQE, IL-NIQE and BRISQUE share, as double-precision torch that exports to ONNX.

Sources: Mittal et al., "Making a completely blind image quality analyzer" (2013: NIQE) and "No-reference image quality
assessment in the spatial domain" (2012: BRISQUE); Lasmar et al. (2009) for the fit of asymmetric generalised Gaussians.

Convolutions gather and sum, because onnxruntime convolves single precision only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import gamma
from torch import Tensor, nn

Border = Literal["replicate", "zero"]
Luma = Literal["full", "studio"]

SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""Rows and columns to the neighbour that a coefficient is multiplied with."""
_FLAT = [1e-9]
SHAPES = 0.2 + 0.001 * np.arange(9801)
"""The shapes that a fit chooses from, as the authors' code has them."""
_ROWS = 99  # times as many columns: all midpoints between shapes, and one that nothing lies above


def to_luma(pixels: Tensor, luma: Luma) -> Tensor:
    """uint8 RGB ``[..., 3]`` to grey levels, whole numbers as float64.

    ``full``: 0..255, what ``rgb2gray`` of MATLAB gives. ``studio``: 16..235, the Y that image restoration reports on.
    """
    if luma == "full":
        weights, offset = constant([0.298936021293775, 0.587043074451121, 0.114020904255103]), 0
    else:
        weights, offset = constant([65.481, 128.553, 24.966]) / 255, 16
    # Not a multiplication of matrices: onnxruntime takes five times as long over one with three columns.
    red, green, blue = (plane.to(torch.float64) * weights[place] for place, plane in enumerate(pixels.unbind(-1)))
    grey: Tensor = red + green + blue + offset
    return grey.round()


def constant(values: Sequence[float] | NDArray[np.float64]) -> Tensor:
    """Float64. A Python number would become a float32 constant of the graph."""
    return torch.tensor(values, dtype=torch.float64)


def gaussian_taps(size: int, sigma: float) -> Tensor:
    """One side of MATLAB's ``fspecial('gaussian', size, sigma)``, which is the outer product of this with itself."""
    offsets = np.arange(size) - (size - 1) / 2
    taps = np.exp(-(offsets**2) / (2 * sigma**2))
    return constant(taps / taps.sum())


def correlate(x: Tensor, down: Tensor, across: Tensor, border: Border) -> Tensor:
    """``x`` ``[..., height, width]`` correlated with the outer product of two odd-sized sets of taps; same shape."""
    for axis, taps in ((-2, down), (-1, across)):
        length, reach = x.shape[axis], len(taps) // 2
        index = torch.arange(length).unsqueeze(1) + torch.arange(-reach, reach + 1)
        weights = taps.expand(index.shape)
        if border == "zero":
            weights = torch.where((index >= 0) & (index < length), weights, 0.0)
        x = _gathered(x, axis, index.clamp(0, length - 1), weights)
    return x


def halve(x: Tensor) -> Tensor:
    """``[..., height, width]`` with even sides at half the size: MATLAB's ``imresize(x, 0.5)``.

    Keys' cubic kernel, stretched by two against aliasing, with the picture mirrored at its borders.
    """
    distances = np.abs(np.arange(8) - 3.5) / 2
    near = 1.5 * distances**3 - 2.5 * distances**2 + 1
    far = -0.5 * distances**3 + 2.5 * distances**2 - 4 * distances + 2
    weights = np.where(distances <= 1, near, far)
    taps = constant(weights / weights.sum())
    for axis in (-2, -1):
        length = x.shape[axis]
        index = 2 * torch.arange(length // 2).unsqueeze(1) + torch.arange(-3, 5)
        index = torch.where(index < 0, -1 - index, index)
        index = torch.where(index >= length, 2 * length - 1 - index, index)
        x = _gathered(x, axis, index, taps.expand(index.shape))
    return x


def decimate(x: Tensor, taps: Tensor) -> Tensor:
    """``[..., height, width]`` with even sides smoothed by an even number of taps at every second pixel.

    Edges are repeated. The middle of the taps lies between the pixel and the next.
    """
    reach = len(taps) // 2
    for axis in (-2, -1):
        length = x.shape[axis]
        index = 2 * torch.arange(length // 2).unsqueeze(1) + torch.arange(1 - reach, reach + 1)
        x = _gathered(x, axis, index.clamp(0, length - 1), taps.expand(index.shape))
    return x


def _gathered(x: Tensor, axis: int, index: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums along ``axis`` (-2 or -1) of the entries with the numbers ``index`` ``[results, taps]``."""
    total = torch.zeros((), dtype=x.dtype)
    for tap in range(index.shape[1]):
        column = weights[:, tap]
        total = total + x.index_select(axis, index[:, tap]) * (column if axis == -1 else column.unsqueeze(1))
    return total


def normalise(x: Tensor, taps: Tensor, border: Border) -> tuple[Tensor, Tensor]:
    """Mean-subtracted, contrast-normalised coefficients of ``[batch, height, width]``, and the local deviation."""
    mean = correlate(x, taps, taps, border)
    deviation = (correlate(x * x, taps, taps, border) - mean * mean).abs().sqrt()
    normal = (x - mean) / (deviation + 1)
    return without_rounding(normal), deviation


def without_rounding(x: Tensor) -> Tensor:
    """Zero for what is nearly zero: what flat areas differ from it by is rounding, and its sign is chance."""
    return torch.where(x.abs() < constant(_FLAT), 0.0, x)


def to_blocks(x: Tensor, side: int) -> Tensor:
    """``[batch, height, width]`` cut into squares, row by row: ``[batch, blocks, side, side]``."""
    batch, height, width = x.shape
    x = x.reshape(batch, height // side, side, width // side, side)
    return x.transpose(2, 3).flatten(1, 2)


def with_products(x: Tensor) -> Tensor:
    """``[..., height, width]`` to ``[..., 5, height, width]``: the coefficients, then their products with neighbours.

    The neighbours are those of :data:`SHIFTS`, around the edges.
    """
    return torch.stack([x, *(x * x.roll(shift, (-2, -1)) for shift in SHIFTS)], dim=-3)


class AsymmetricGaussian(nn.Module):
    """Fits asymmetric generalised Gaussians by moments; shapes are chosen from 0.2, 0.201 ... 10.

    All methods take float64 samples ``[..., height, width]`` and give ``[...]``. Where there are no samples of one
    sign, what depends on that side is NaN.
    """

    def __init__(self) -> None:
        super().__init__()
        ratio = gamma(2 / SHAPES) ** 2 / (gamma(1 / SHAPES) * gamma(3 / SHAPES))
        self.finder = Nearest(ratio)
        self.register_buffer("shapes", torch.from_numpy(SHAPES))
        self.register_buffer("scale_of_shape", torch.from_numpy(np.sqrt(gamma(1 / SHAPES) / gamma(3 / SHAPES))))
        self.register_buffer("mean_of_shape", torch.from_numpy(gamma(2 / SHAPES) / gamma(1 / SHAPES)))
        self.shapes: Tensor
        self.scale_of_shape: Tensor
        self.mean_of_shape: Tensor

    def scales(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shape, mean, and the scales on the left and on the right."""
        index, left, right = self._fitted(x)
        scale = self.scale_of_shape[index]
        left, right = left * scale, right * scale
        return self.shapes[index], (right - left) * self.mean_of_shape[index], left, right

    def deviations(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Shape, mean, and the deviations on the left and on the right: scales are in proportion to them."""
        index, left, right = self._fitted(x)
        mean = (right - left) * self.mean_of_shape[index] * self.scale_of_shape[index]
        return self.shapes[index], mean, left, right

    def _fitted(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which shape, and the root mean squares of the negative and of the positive samples."""
        square, negative, positive = x * x, (x < 0).to(x.dtype), (x > 0).to(x.dtype)
        left = ((square * negative).sum((-2, -1)) / negative.sum((-2, -1))).sqrt()
        right = ((square * positive).sum((-2, -1)) / positive.sum((-2, -1))).sqrt()
        balance = left / right
        ratio = x.abs().mean((-2, -1)) ** 2 / square.mean((-2, -1))
        ratio = ratio * (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
        return self.finder(ratio), left, right


def niqe_features(fit: AsymmetricGaussian, blocks: Tensor) -> Tensor:
    """The 18 features of NIQE at one scale: normalised blocks ``[..., height, width]`` to ``[..., 18]``."""
    shape, mean, left, right = fit.scales(with_products(blocks))
    products = torch.stack([shape, mean, left, right], dim=-1)[..., 1:, :].flatten(-2)
    return torch.cat([shape[..., :1], (left[..., :1] + right[..., :1]) / 2, products], dim=-1)


class Nearest(nn.Module):
    """Index of the nearest of 9801 increasing values, in two steps of 99 so that no large array is made."""

    def __init__(self, values: NDArray[np.float64]) -> None:
        super().__init__()
        midpoints = np.append((values[1:] + values[:-1]) / 2, np.inf).reshape(_ROWS, _ROWS)
        self.register_buffer("midpoints", torch.from_numpy(midpoints))
        self.register_buffer("ends", torch.from_numpy(midpoints[:-1, -1].copy()))
        self.midpoints: Tensor
        self.ends: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Float64 ``[...]`` to int64 ``[...]``; the first for NaN."""
        row = (self.ends < x[..., None]).sum(-1)
        return _ROWS * row + (self.midpoints[row] < x[..., None]).sum(-1)
