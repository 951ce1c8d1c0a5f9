"""Pictures that are drawn, not taken: what a bundle's golden file holds, free of anybody's rights."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from critiq_exporters.training.degradations import Pixels, degrade
from critiq_exporters.training.degradations.pixelwise import smooth_field, to_pixels

PROMPTS = (
    "a red circle on a blue background",
    "green hills under a cloudy sky",
    "grey static noise",
    "a checkerboard floor with a yellow ball",
    "a black and white stripe pattern",
    "an orange sunset over dark water",
)


def drawings(seed: int = 0) -> list[Pixels]:
    """Six drawn pictures of several sizes, one for each of ``PROMPTS``; the same seed draws the same."""
    rng = np.random.default_rng(seed)
    return [
        _disc(256, 256),
        _hills(320, 480, rng),
        rng.integers(0, 256, (240, 240, 3), dtype=np.uint8),
        _floor(512, 512),
        degrade(_stripes(300, 400), "gaussian_blur", 4, rng),
        degrade(_sunset(360, 640, rng), "jpeg", 4, rng),
    ]


def _disc(height: int, width: int) -> Pixels:
    image = Image.new("RGB", (width * 4, height * 4), (30, 60, 180))
    ImageDraw.Draw(image).ellipse((width, height, width * 3, height * 3), fill=(210, 30, 40))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))


def _hills(height: int, width: int, rng: np.random.Generator) -> Pixels:
    y = np.linspace(0, 1, height)[:, None, None]
    clouds = np.clip(0.5 + 0.35 * smooth_field((height, width), 6, rng), 0, 1)[..., None]
    picture = (1 - y) * [90, 140, 220] + y * [190, 215, 240]
    picture = picture * (1 - 0.6 * clouds) + 255 * 0.6 * clouds
    columns = np.arange(width)
    for depth, colour in ((0.55, (70, 120, 80)), (0.68, (60, 140, 60)), (0.82, (40, 95, 35))):
        phase, waves = rng.uniform(0, 6, 2)
        ridge = height * (depth + 0.06 * np.sin(columns / width * (4 + waves) + phase))
        texture = 1 + 0.12 * smooth_field((height, width), 60, rng)[..., None]
        picture = np.where((np.arange(height)[:, None] > ridge)[..., None], np.asarray(colour) * texture, picture)
    return to_pixels(picture)


def _floor(height: int, width: int) -> Pixels:
    y, x = np.mgrid[0:height, 0:width]
    depth = np.maximum(y - height * 0.45, 1)
    tiles = (np.floor(6000 / depth) + np.floor((x - width / 2) * 14 / depth)) % 2
    picture = np.where((y < height * 0.45)[..., None], [200, 210, 225], np.where(tiles[..., None] > 0, 235, 40))
    distance = np.hypot(y - height * 0.6, x - width * 0.5) / (height * 0.16)
    shade = np.clip(1.1 - 0.7 * np.hypot(y / height - 0.52, x / width - 0.45) * 4, 0.25, 1)[..., None]
    return to_pixels(np.where((distance < 1)[..., None], np.asarray([250, 215, 40]) * shade, picture))


def _stripes(height: int, width: int) -> Pixels:
    bars = (np.arange(width) // 20 % 2 * 255).astype(np.uint8)
    return np.broadcast_to(bars[None, :, None], (height, width, 3)).copy()


def _sunset(height: int, width: int, rng: np.random.Generator) -> Pixels:
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    glow = np.exp(-((x - 0.6) ** 2 * 6 + (y - 0.55) ** 2 * 14))[..., None]
    sky = (1 - y[..., None]) * [60, 40, 90] + y[..., None] * [220, 110, 60]
    picture = sky + glow * [60, 120, 60]
    waves = 18 * np.sin(y * 260 + 3 * smooth_field((height, width), 14, rng))[..., None]
    water = np.asarray([35, 25, 50]) + waves + glow * [170, 90, 30]
    return to_pixels(np.where((y > 0.6)[..., None], water, picture))
