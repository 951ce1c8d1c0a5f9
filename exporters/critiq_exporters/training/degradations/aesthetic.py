"""Aesthetic degradations: the picture stays technically sound, but light, colour or composition are spoilt.

Stands in for the edited negatives of ELIQ (section 3.2.3), which an image-editing model made.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from critiq_exporters.training.degradations.pixelwise import (
    blur,
    from_hsv,
    from_ycc,
    pick,
    smooth_field,
    to_hsv,
    to_pixels,
    to_ycc,
)
from critiq_exporters.training.degradations.registry import Pixels, family


@family("aesthetic")
def colour_cast(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    angle = rng.uniform(0, 2 * np.pi)
    strength = pick((14, 24, 38, 56, 80), level)
    ycc = to_ycc(pixels)
    ycc[..., 1] += strength * float(np.cos(angle))
    ycc[..., 2] += strength * float(np.sin(angle))
    return from_ycc(ycc)


@family("aesthetic")
def oversaturated(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    hsv = to_hsv(pixels)
    hsv[..., 1] = hsv[..., 1] * pick((1.6, 2.1, 2.8, 4.0, 6.0), level) + 4.0 * level
    return from_hsv(hsv)


@family("aesthetic")
def overexposed(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return to_pixels(pixels * pick((1.35, 1.7, 2.2, 3.0, 4.2), level))


@family("aesthetic")
def underexposed(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    return to_pixels(pixels * pick((0.6, 0.45, 0.32, 0.21, 0.12), level))


@family("aesthetic")
def bad_crop(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """A corner of the picture, enlarged: the subject is cut."""
    share = pick((0.75, 0.62, 0.5, 0.4, 0.3), level)
    height, width = pixels.shape[:2]
    rows, columns = round(height * share), round(width * share)
    top = 0 if rng.random() < 0.5 else height - rows
    left = 0 if rng.random() < 0.5 else width - columns
    part = Image.fromarray(pixels[top : top + rows, left : left + columns])
    return np.asarray(part.resize((width, height), Image.Resampling.BICUBIC))


@family("aesthetic")
def tilted(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Turned, and cut so that no border shows."""
    angle = pick((5, 9, 14, 20, 28), level) * (1 if rng.random() < 0.5 else -1)
    height, width = pixels.shape[:2]
    turned = Image.fromarray(pixels).rotate(angle, Image.Resampling.BICUBIC)
    radians = abs(float(np.deg2rad(angle)))
    share = 1 / (np.cos(radians) + max(height / width, width / height) * np.sin(radians))
    rows, columns = int(height * share), int(width * share)
    top, left = (height - rows) // 2, (width - columns) // 2
    inner = turned.crop((left, top, left + columns, top + rows))
    return np.asarray(inner.resize((width, height), Image.Resampling.BICUBIC))


@family("aesthetic")
def cluttered(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Strips and blocks from elsewhere in the picture, turned, lie in front of it."""
    height, width = pixels.shape[:2]
    canvas = Image.fromarray(pixels)
    for _ in range(int(pick((2, 4, 7, 11, 16), level))):
        rows = int(rng.integers(height // 12, height // 4))
        columns = int(rng.integers(width // 12, width // 4))
        top, left = int(rng.integers(0, height - rows)), int(rng.integers(0, width - columns))
        piece = Image.fromarray(pixels[top : top + rows, left : left + columns])
        mask = Image.new("L", piece.size, 255)
        angle = float(rng.uniform(0, 360))
        piece = piece.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        mask = mask.rotate(angle, Image.Resampling.BILINEAR, expand=True)
        canvas.paste(piece, (int(rng.integers(-columns // 2, width)), int(rng.integers(-rows // 2, height))), mask)
    return np.asarray(canvas)


@family("aesthetic")
def flat_light(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Large-scale light and shade taken out, tones pressed together, colours greyed."""
    strength = pick((0.35, 0.5, 0.65, 0.78, 0.9), level)
    ycc = to_ycc(pixels)
    light = blur(ycc[..., :1], min(pixels.shape[:2]) / 16)
    ycc[..., :1] += strength * (150 - light)
    ycc[..., :1] = 150 + (ycc[..., :1] - 150) * (1 - 0.5 * strength)
    ycc[..., 1:] = 128 + (ycc[..., 1:] - 128) * (1 - 0.6 * strength)
    return from_ycc(ycc)


@family("aesthetic")
def hazy(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """A grey veil of uneven density."""
    density = pick((0.22, 0.34, 0.48, 0.62, 0.78), level)
    veil = np.clip(density * (1 + 0.25 * smooth_field(pixels.shape[:2], 3, rng)), 0, 0.95)[..., None]
    return to_pixels(pixels * (1 - veil) + (195 + rng.uniform(-20, 20)) * veil)


@family("aesthetic")
def harsh_vignette(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    height, width = pixels.shape[:2]
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    reach = np.hypot(y - rng.uniform(-0.3, 0.3), x - rng.uniform(-0.3, 0.3))
    shade = np.clip(1 - pick((0.35, 0.5, 0.7, 0.9, 1.2), level) * reach**1.5, 0.02, 1)[..., None]
    return to_pixels(pixels * shade)


@family("aesthetic")
def clashing_hues(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Hues drift over the picture, as in a bad filter."""
    hsv = to_hsv(pixels)
    drift = smooth_field(pixels.shape[:2], 2, rng) * pick((10, 18, 30, 48, 75), level)
    hsv[..., 0] += drift
    hsv[..., 1] = hsv[..., 1] * (1 + 0.1 * level) + 3 * level
    return from_hsv(hsv)
