"""NIQE and BRISQUE written from the papers in plain NumPy and SciPy, block by block, to hold the graphs against."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate
from scipy.special import gamma

Array = NDArray[Any]
GRID = np.arange(0.2, 10.0005, 0.001)


def grey_of(pixels: Array) -> Array:
    weights = np.linalg.inv([[1.0, 0.956, 0.621], [1.0, -0.272, -0.647], [1.0, -1.106, 1.703]])[0]
    return np.round(pixels @ weights)


def window(size: int, sigma: float) -> Array:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    values = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    return values / values.sum()


def normalised(image: Array, size: int, sigma: float, mode: str) -> tuple[Array, Array]:
    mean = correlate(image, window(size, sigma), mode=mode)
    deviation = np.sqrt(np.abs(correlate(image**2, window(size, sigma), mode=mode) - mean**2))
    result = (image - mean) / (deviation + 1)
    result[np.abs(result) < 1e-9] = 0  # rounding, in flat areas
    return result, deviation


def shrink(image: Array) -> Array:
    """Half the size by a dense matrix of cubic weights a side."""
    for _ in range(2):
        image = (weights_of_half(len(image)) @ image).T
    return image


def weights_of_half(length: int) -> Array:
    matrix = np.zeros((length // 2, length))
    for row in range(length // 2):
        centre = 2 * row + 0.5
        for tap in range(int(centre) - 6, int(centre) + 8):
            x = abs(tap - centre) / 2
            value = 1.5 * x**3 - 2.5 * x**2 + 1 if x <= 1 else -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0
            mirrored = -1 - tap if tap < 0 else 2 * length - 1 - tap if tap >= length else tap
            matrix[row, mirrored] += value
    return matrix / matrix.sum(axis=1, keepdims=True)


def asymmetric(samples: Array) -> tuple[float, float, float]:
    """Shape and the two deviations of an asymmetric generalised Gaussian."""
    left = np.sqrt(np.mean(samples[samples < 0] ** 2))
    right = np.sqrt(np.mean(samples[samples > 0] ** 2))
    balance = left / right
    wanted = np.mean(np.abs(samples)) ** 2 / np.mean(samples**2)
    wanted *= (balance**3 + 1) * (balance + 1) / (balance**2 + 1) ** 2
    table = gamma(2 / GRID) ** 2 / (gamma(1 / GRID) * gamma(3 / GRID))
    return float(GRID[np.argmin((table - wanted) ** 2)]), float(left), float(right)


def products(block: Array) -> list[Array]:
    return [block * np.roll(block, shift, (0, 1)) for shift in ((0, 1), (1, 0), (1, 1), (1, -1))]


def niqe_of_block(block: Array) -> list[float]:
    """18 features."""
    features = []
    for number, samples in enumerate([block, *products(block)]):
        shape, left, right = asymmetric(samples)
        left, right = (side * np.sqrt(gamma(1 / shape) / gamma(3 / shape)) for side in (left, right))
        if number == 0:
            features += [shape, (left + right) / 2]
        else:
            features += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return features


def niqe_features(pixels: Array) -> Array:
    """``[blocks, 36]``, row by row."""
    grey = grey_of(pixels)
    scales = []
    for image, side in ((grey, 96), (shrink(grey), 48)):
        normal, _ = normalised(image, 7, 7 / 6, "nearest")
        rows, columns = (length // side for length in normal.shape)
        blocks = [
            normal[side * row : side * (row + 1), side * column : side * (column + 1)]
            for row in range(rows)
            for column in range(columns)
        ]
        scales.append([niqe_of_block(block) for block in blocks])
    return np.concatenate([np.array(scale) for scale in scales], axis=1)


def niqe(pixels: Array, mean: Array, covariance: Array) -> float:
    features = niqe_features(pixels)
    whole = features[~np.isnan(features).any(axis=1)]
    difference = mean - np.nanmean(features, axis=0)
    return float(np.sqrt(difference @ np.linalg.pinv((covariance + np.cov(whole, rowvar=False)) / 2) @ difference))


def brisque_features(pixels: Array) -> list[float]:
    """36 features."""
    features: list[float] = []
    image = grey_of(pixels)
    table = gamma(1 / GRID) * gamma(3 / GRID) / gamma(2 / GRID) ** 2
    for _ in range(2):
        normal, _ = normalised(image, 7, 7 / 6, "constant")
        square = np.mean(normal**2)
        features += [GRID[np.argmin(np.abs(table - square / np.mean(np.abs(normal)) ** 2))], square]
        for samples in products(normal):
            shape, left, right = asymmetric(samples)
            mean = (right - left) * gamma(2 / shape) / gamma(1 / shape) * np.sqrt(gamma(1 / shape) / gamma(3 / shape))
            features += [shape, mean, left**2, right**2]
        image = shrink(image)
    return features
