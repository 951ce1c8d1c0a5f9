"""Small picture operations that several families share."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from critiq_exporters.training.degradations.registry import Pixels

Floats = NDArray[np.float32]


def pick(values: tuple[float, ...], level: int) -> float:
    """The value for a level 1..5."""
    return float(values[level - 1])


def to_pixels(values: NDArray[np.floating]) -> Pixels:
    """Rounds and cuts 0..255 floats to pixels."""
    result: Pixels = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return result


def blur(values: NDArray[np.generic], sigma: float) -> Floats:
    """Gaussian blur over rows and columns of ``[height, width, channels]``."""
    result: Floats = ndimage.gaussian_filter(values.astype(np.float32), (sigma, sigma, 0), mode="nearest", truncate=3.0)
    return result


def smooth_field(size: tuple[int, ...], cells: int, rng: np.random.Generator) -> Floats:
    """A smooth random field of ``size`` (height, width), standard deviation 1, with ``cells`` bumps along each side."""
    height, width = size
    coarse = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    image = Image.fromarray(coarse, mode="F").resize((width, height), Image.Resampling.BICUBIC)
    field = np.asarray(image, dtype=np.float32)
    result: Floats = field / (float(field.std()) + 1e-6)
    return result


def warp(pixels: Pixels, rows: Floats, columns: Floats) -> Pixels:
    """Samples the picture at displaced positions (pixels), bilinear, borders repeated."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    where = np.stack([y + rows, x + columns])
    planes = [ndimage.map_coordinates(pixels[..., c], where, order=1, mode="nearest") for c in range(3)]
    return np.stack(planes, -1)


def rescale(pixels: Pixels, factor: float, down: Image.Resampling, up: Image.Resampling) -> Pixels:
    """Shrinks by ``factor`` and enlarges to the old size again."""
    height, width = pixels.shape[:2]
    small = (max(2, round(width * factor)), max(2, round(height * factor)))
    return np.asarray(Image.fromarray(pixels).resize(small, down).resize((width, height), up))


def encoded(pixels: Pixels, codec: str, **options: object) -> Pixels:
    """The picture after a trip through a lossy codec of Pillow's."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, codec, **options)
    with Image.open(buffer, formats=[codec]) as image:
        return np.asarray(image.convert("RGB"))


def to_hsv(pixels: Pixels) -> Floats:
    """Hue, saturation, value, each 0..255."""
    return np.asarray(Image.fromarray(pixels).convert("HSV"), dtype=np.float32)


def from_hsv(values: Floats) -> Pixels:
    """Back to RGB; hue wraps, the others are cut."""
    wrapped = values.copy()
    wrapped[..., 0] %= 256
    return np.asarray(Image.fromarray(np.clip(wrapped, 0, 255).astype(np.uint8), mode="HSV").convert("RGB"))


def to_ycc(pixels: Pixels) -> Floats:
    """A luma-chroma space ``[height, width, 3]``: Y 0..255, Cb and Cr around 128 (BT.601)."""
    return np.asarray(Image.fromarray(pixels).convert("YCbCr"), dtype=np.float32)


def from_ycc(values: Floats) -> Pixels:
    """Back to RGB."""
    return np.asarray(Image.fromarray(to_pixels(values), mode="YCbCr").convert("RGB"))


def disc(radius: float) -> Floats:
    """A flat disc kernel of unit sum."""
    side = int(np.ceil(radius))
    y, x = np.mgrid[-side : side + 1, -side : side + 1]
    kernel = np.clip(radius + 0.5 - np.hypot(y, x), 0, 1).astype(np.float32)
    result: Floats = kernel / float(kernel.sum())
    return result


def convolve(pixels: Pixels, kernel: Floats) -> Pixels:
    """Each channel convolved with a small kernel, borders repeated."""
    planes = [ndimage.convolve(pixels[..., c].astype(np.float32), kernel, mode="nearest") for c in range(3)]
    return to_pixels(np.stack(planes, -1))
