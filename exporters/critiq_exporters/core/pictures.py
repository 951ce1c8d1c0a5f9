"""Pictures for the gates and the golden records: drawn here, free of anybody's rights, or read from a folder."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from critiq.errors import CritiqError
from critiq_server.images.decode import decode
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage

Pixels = NDArray[np.uint8]

PROMPTS = (
    "a red circle on a blue background",
    "stripes",
    "a green hill under a bright sky, an oil painting of the nineteenth century in a golden frame",
    "grey noise",
)
_SIZES = ((224, 224), (320, 240), (256, 384), (512, 512))
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def prompts(count: int) -> list[str]:
    """``count`` prompts of different lengths, in a cycle."""
    return [PROMPTS[number % len(PROMPTS)] for number in range(count)]


def read_pictures(folder: Path, count: int) -> list[Pixels]:
    """Up to ``count`` pictures below ``folder``, in the order of their names, decoded as the server does.

    Raises ``ValueError`` where there is none, or one cannot be decoded.
    """
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)[:count]
    if not files:
        raise ValueError(f"{folder} holds no pictures ({', '.join(_SUFFIXES)})")
    pictures = []
    for file in files:
        try:
            pictures.append(decode(EncodedImage(file.read_bytes()), ImageLimits()).pixels)
        except CritiqError as error:
            raise ValueError(f"{file}: {error}") from error
    return pictures


def drawn_pictures(count: int, seed: int = 0) -> list[Pixels]:
    """``count`` drawings of several sizes and kinds, every second one blurred, noisy or compressed.

    uint8 ``[height, width, 3]``; the same ``seed`` draws the same, and fewer are the first of more.
    """
    rng = np.random.default_rng(seed)
    return [_spoilt(_scene(number, rng), number, rng) for number in range(count)]


def _scene(number: int, rng: np.random.Generator) -> Image.Image:
    width, height = _SIZES[number % len(_SIZES)]
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j][..., None]
    top, bottom = rng.uniform(0, 255, (2, 3))
    ground = top * (1 - y) + bottom * y + 25 * np.sin(x * rng.uniform(5, 120) + y * rng.uniform(0, 80))
    image = Image.fromarray(np.clip(ground, 0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(2, 9))):
        left, upper = rng.uniform(0, 0.8, 2) * (width, height)
        right, lower = left + rng.uniform(10, width / 2), upper + rng.uniform(10, height / 2)
        colour = tuple(int(level) for level in rng.integers(0, 256, 3))
        draw = (pen.ellipse, pen.rectangle, pen.line)[int(rng.integers(3))]
        draw((left, upper, right, lower), fill=colour)
    return image


def _spoilt(image: Image.Image, number: int, rng: np.random.Generator) -> Pixels:
    kind = number % 6
    if kind == 1:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(1, 6))))
    elif kind == 3:
        noisy = np.asarray(image) + rng.normal(0, rng.uniform(5, 60), (image.height, image.width, 3))
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
    elif kind == 5:
        file = BytesIO()
        image.save(file, "JPEG", quality=int(rng.integers(4, 30)))
        image = Image.open(file).convert("RGB")
    return np.array(image)
