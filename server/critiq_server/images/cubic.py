"""Bicubic resampling as OpenCV's ``INTER_CUBIC`` does it: no antialiasing, four taps a direction at any scale.

Networks that were trained on pictures shrunk this way expect its aliasing. NumPy, and to the last bit what OpenCV's x86
builds give for uint8: weights and sums in float32, along rows first, fused multiply-adds in the order written below.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from critiq_server.images.source import Pixels

_A = -0.75
"""Of the cubic kernel (Keys 1981), as OpenCV chooses it."""


def resize_cubic(pixels: Pixels, height: int, width: int) -> Pixels:
    """``pixels`` (RGB uint8 ``[rows, columns, 3]``) as uint8 ``[height, width, 3]``; border pixels repeat outside."""
    columns, across = _taps(pixels.shape[1], width)
    rows, down = _taps(pixels.shape[0], height)
    across, down = across[:, :, None], down[:, :, None, None]
    values = pixels.astype(np.float32)
    lines = values[:, columns[0]] * across[0]
    for tap in (1, 2, 3):
        lines = _fused(values[:, columns[tap]], across[tap], lines)
    upper = _fused(lines[rows[0]], down[0], lines[rows[1]] * down[1])
    lower = _fused(lines[rows[2]], down[2], lines[rows[3]] * down[3])
    resized: Pixels = np.clip(np.rint(upper + lower), 0, 255).astype(np.uint8)
    return resized


def _taps(length: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Source positions and weights of every target position, both ``[4, target]``."""
    centres = (np.arange(target) + 0.5) * (length / target) - 0.5
    first = np.floor(centres)
    x = centres - first
    weights = np.stack([_outer(x + 1), _inner(x), _inner(1 - x), np.zeros_like(x)])
    weights[3] = 1 - weights.sum(axis=0)
    positions = first.astype(np.int64) + np.arange(-1, 3)[:, None]
    return np.clip(positions, 0, length - 1), weights.astype(np.float32)


def _inner(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _outer(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A


def _fused(a: NDArray[np.float32], b: NDArray[np.float32], c: NDArray[np.float32]) -> NDArray[np.float32]:
    """``a * b + c``, rounded once: the product of two float32 is exact in float64."""
    return np.add(np.multiply(a, b, dtype=np.float64), c, dtype=np.float64).astype(np.float32)
