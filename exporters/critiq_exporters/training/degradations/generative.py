"""Simulations of what generators get wrong: smooth skin, repeats, grids, melted shapes, ghosts, noise, garbled text.

Stands in for the AI-specific technical negatives of ELIQ (section 3.2.3), which came from the generators themselves.
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from critiq_exporters.training.degradations.pixelwise import (
    blur,
    from_hsv,
    pick,
    smooth_field,
    to_hsv,
    to_pixels,
    warp,
)
from critiq_exporters.training.degradations.registry import Pixels, family


@family("generative")
def oversmoothed(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Fine texture gone, edges kept: waxy surfaces."""
    radius = int(pick((2, 3, 4, 6, 8), level))
    values = pixels.astype(np.float32)
    mean = ndimage.uniform_filter(values, (2 * radius + 1, 2 * radius + 1, 0), mode="nearest")
    square = ndimage.uniform_filter(values * values, (2 * radius + 1, 2 * radius + 1, 0), mode="nearest")
    variance = np.maximum(square - mean * mean, 0)
    keep = variance / (variance + pick((80, 180, 400, 900, 2000), level))
    size = (2 * radius + 1, 2 * radius + 1, 0)
    gain = ndimage.uniform_filter(keep, size, mode="nearest")
    offset = ndimage.uniform_filter(mean * (1 - keep), size, mode="nearest")
    return to_pixels(gain * values + offset)


@family("generative")
def repeated_texture(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """One patch is tiled over smooth-edged regions."""
    height, width = pixels.shape[:2]
    side = max(8, min(height, width) // int(rng.integers(8, 16)))
    top, left = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
    patch = pixels[top : top + side, left : left + side]
    tiled = np.tile(patch, (height // side + 1, width // side + 1, 1))[:height, :width]
    cover = smooth_field((height, width), 4, rng)
    threshold = float(np.quantile(cover, 1 - pick((0.06, 0.12, 0.22, 0.35, 0.55), level)))
    weight = 1 / (1 + np.exp(-np.clip((cover - threshold) * 12, -50, 50)))[..., None]
    return to_pixels(pixels * (1 - weight) + tiled * weight)


@family("generative")
def checkerboard(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """The pattern of uneven overlap in transposed convolutions."""
    period = int(rng.choice([2, 4]))
    y, x = np.mgrid[0 : pixels.shape[0], 0 : pixels.shape[1]]
    pattern = np.where(((y // (period // 2)) + (x // (period // 2))) % 2 == 0, 1.0, -1.0)[..., None]
    contrast = np.abs(pixels - blur(pixels, 3.0)).mean(-1, keepdims=True)
    return to_pixels(pixels + pattern * pick((2.5, 4.5, 8, 14, 24), level) * (0.6 + np.minimum(contrast / 12, 1.2)))


@family("generative")
def latent_grid(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Seams and steps at the cells of a latent grid."""
    cell = int(rng.choice([8, 16]))
    height, width = pixels.shape[:2]
    rows, columns = -(-height // cell), -(-width // cell)
    steps = rng.normal(0, pick((2.5, 4.5, 8, 13, 22), level), (rows, columns, 3)) * [1.0, 0.8, 1.0]
    field = np.repeat(np.repeat(steps, cell, 0), cell, 1)[:height, :width]
    return to_pixels(pixels + field)


@family("generative")
def melted(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Shapes flow: a smooth random displacement of several pixels."""
    strength = pick((2.0, 3.5, 6.0, 10.0, 16.0), level) * min(pixels.shape[:2]) / 384
    cells = int(rng.integers(6, 14))
    rows = smooth_field(pixels.shape[:2], cells, rng) * strength
    columns = smooth_field(pixels.shape[:2], cells, rng) * strength
    return warp(pixels, rows.astype(np.float32), columns.astype(np.float32))


@family("generative")
def locally_melted(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Swirls and pinches at a few places, the rest untouched: bad hands and faces."""
    height, width = pixels.shape[:2]
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    rows, columns = np.zeros_like(y), np.zeros_like(x)
    for _ in range(int(pick((2, 3, 5, 7, 10), level))):
        centre_y, centre_x = float(rng.uniform(0.15, 0.85)) * height, float(rng.uniform(0.15, 0.85)) * width
        radius = float(rng.uniform(0.08, 0.18)) * min(height, width)
        turn = float(rng.choice([-1, 1])) * pick((0.8, 1.2, 1.7, 2.3, 3.0), level)
        dy, dx = y - centre_y, x - centre_x
        angle = turn * np.exp(-(dy**2 + dx**2) / (2 * (radius / 1.5) ** 2))
        rows += dy * (np.cos(angle) - 1) - dx * np.sin(angle)
        columns += dy * np.sin(angle) + dx * (np.cos(angle) - 1)
    return warp(pixels, rows.astype(np.float32), columns.astype(np.float32))


@family("generative")
def ghosting(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """A second, displaced copy shines through."""
    strength = pick((0.15, 0.24, 0.33, 0.42, 0.5), level)
    distance = pick((4, 7, 11, 16, 22), level) * min(pixels.shape[:2]) / 384
    angle = rng.uniform(0, 2 * np.pi)
    copy = ndimage.shift(pixels, (distance * np.sin(angle), distance * np.cos(angle), 0), order=0, mode="nearest")
    return to_pixels(pixels * (1 - strength) + copy * strength)


@family("generative")
def inconsistent_patches(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Rectangles that were rendered at another sharpness, tone or position."""
    height, width = pixels.shape[:2]
    result = pixels.astype(np.float32)
    soft = blur(pixels, pick((1.0, 1.5, 2.2, 3.0, 4.0), level))
    for _ in range(int(pick((3, 5, 8, 12, 18), level))):
        rows, columns = int(rng.integers(height // 10, height // 3)), int(rng.integers(width // 10, width // 3))
        top, left = int(rng.integers(0, height - rows)), int(rng.integers(0, width - columns))
        window = (slice(top, top + rows), slice(left, left + columns))
        kind = rng.integers(0, 3)
        if kind == 0:
            result[window] = soft[window]
        elif kind == 1:
            result[window] = result[window] * (1 + rng.uniform(-0.08, 0.08) * level) + rng.normal(0, 4.0 * level, 3)
        else:
            shift = rng.integers(-2 * level - 1, 2 * level + 2, 2)
            result[window] = np.roll(result, tuple(int(v) for v in shift), (0, 1))[window]
    return to_pixels(result)


@family("generative")
def premature(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Decoded before denoising was done: vague shapes under mottled, coloured noise at the latent scale."""
    height, width = pixels.shape[:2]
    vague = blur(pixels, pick((0.6, 1.1, 1.8, 2.8, 4.2), level))
    noise = np.zeros_like(vague)
    for cell, share in ((4, 0.5), (8, 1.0)):
        coarse = rng.standard_normal((height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        planes = [
            np.asarray(Image.fromarray(coarse[..., c], mode="F").resize((width, height), Image.Resampling.BICUBIC))
            for c in range(3)
        ]
        noise += share * np.stack(planes, -1)
    return to_pixels(vague + noise * pick((4, 7, 12, 19, 29), level))


@family("generative")
def garbled_text(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Lines of strokes that look like letters and are none."""
    image = Image.fromarray(pixels)
    draw = ImageDraw.Draw(image)
    height, width = pixels.shape[:2]
    for _ in range(int(pick((1, 2, 4, 6, 9), level))):
        size = int(rng.integers(max(8, height // 24), max(12, height // 9)))
        x, y = int(rng.integers(0, max(1, width // 2))), int(rng.integers(0, max(1, height - size)))
        under = pixels[y : y + size, x : x + size]
        colour = (255, 255, 255) if float(under.mean()) < 128 else (15, 15, 15)
        for _ in range(int(rng.integers(4, 11))):
            _draw_glyph(draw, x, y, size, colour, rng)
            x += int(size * rng.uniform(0.6, 0.95))
    return np.asarray(image)


def _draw_glyph(
    draw: ImageDraw.ImageDraw, x: int, y: int, size: int, colour: tuple[int, int, int], rng: np.random.Generator
) -> None:
    thickness = max(1, size // 9)
    for _ in range(int(rng.integers(2, 5))):
        x0, x1 = sorted(x + rng.uniform(0, 0.7, 2) * size)
        y0, y1 = sorted(y + rng.uniform(0, 1.0, 2) * size)
        if rng.random() < 0.5:
            draw.line((x0, y0, x1, y1) if rng.random() < 0.5 else (x0, y1, x1, y0), fill=colour, width=thickness)
        else:
            start = float(rng.uniform(0, 360))
            draw.arc((x0, y0, x1 + 2, y1 + 2), start, start + float(rng.uniform(90, 300)), fill=colour, width=thickness)


@family("generative")
def overguided(pixels: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Too much guidance: burnt contrast and colour, hard outlines."""
    strength = pick((0.3, 0.5, 0.8, 1.2, 1.7), level)
    detail = pixels - blur(pixels, 2.5)
    harsh = 128 + (pixels.astype(np.float32) - 128) * (1 + 0.7 * strength) + 1.2 * strength * detail
    hsv = to_hsv(to_pixels(harsh))
    hsv[..., 1] *= 1 + 0.6 * strength
    return from_hsv(hsv)
