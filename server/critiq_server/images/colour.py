"""Pillow's pictures of any mode -> RGB pixels in sRGB, strip by strip so that memory stays near the result's size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from critiq_server.images.source import Pixels

STRIP_PIXELS = 2**17
WHOLE_PIXELS = 2**20
"""Plain RGB up to this size is copied at once, which is faster for small pictures."""
MAX_PROFILE_BYTES = 4 * 2**20
"""Larger colour profiles are ignored: the transforms of the last few profiles are kept."""
SAME_LEVELS = 2
"""A profile that moves no colour by more than this (of 255) is sRGB under another name."""

Colour = tuple[int, int, int]
"""Red, green, blue, 0..255."""


@dataclass(frozen=True, slots=True)
class Converted:
    """RGB pixels and what had to be done for them."""

    pixels: Pixels
    alpha_flattened: bool
    colour_converted: bool


def to_rgb(image: Image.Image, background: Colour, key: int | Colour | None = None) -> Converted:
    """Pixels of a loaded picture, in sRGB.

    Colours go through the embedded ICC profile where it is usable and says anything else than sRGB; CMYK without one
    by Pillow's formula. Transparent pixels are composited onto ``background`` after that. ``key`` is the one colour
    (level for grey) that a PNG file declares transparent. 16-bit grey is scaled to 8 bits.
    """
    transform = _transform(image.info.get("icc_profile"), _ink(image))
    if image.mode == "RGB" and transform is None and key is None and image.width * image.height <= WHOLE_PIXELS:
        return Converted(np.asarray(image), alpha_flattened=False, colour_converted=False)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    flattened = False
    for top, strip in _strips(image):
        colours = _colours(strip, transform)
        alpha = _alpha(strip, key)
        if alpha is not None and alpha.getextrema() != (255, 255):
            flattened = True
            colours = Image.composite(colours, Image.new("RGB", strip.size, background), alpha)
        pixels[top : top + strip.height] = np.asarray(colours)
    converted = transform is not None or _ink(image) != "RGB" or image.mode in ("P", "PA")
    return Converted(pixels, flattened, converted)


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    rows = max(1, STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _ink(image: Image.Image) -> str:
    """What the samples mean, in the words of colour management: ``CMYK``, grey ``L`` or ``RGB``."""
    if image.mode == "CMYK":
        return "CMYK"
    return "L" if image.mode in ("1", "L", "LA", "La", "I;16") else "RGB"


def _colours(strip: Image.Image, transform: ImageCms.ImageCmsTransform | None) -> Image.Image:
    """``strip`` as opaque RGB."""
    if strip.mode == "I;16":
        strip = Image.fromarray(_eight_bits(np.asarray(strip)))
    if transform is not None:
        moved = ImageCms.applyTransform(_plain(strip, _ink(strip)), transform)
        assert moved is not None  # noqa: S101 - only None where it works in place
        return moved
    return _plain(strip, "RGB")


def _plain(strip: Image.Image, mode: str) -> Image.Image:
    if strip.mode in ("P", "PA") and strip.has_transparency_data:
        strip = strip.convert("RGBA")  # Pillow warns when it must drop a palette's transparency on the way
    return strip if strip.mode == mode else strip.convert(mode)


def _eight_bits(levels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """``round(level / 257)``; Pillow's own conversion clips at 255."""
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _alpha(strip: Image.Image, key: int | Colour | None) -> Image.Image | None:
    """Opacity as a grey picture, ``None`` where everything is opaque by its mode."""
    if key is not None:
        same = np.asarray(strip.convert("L") if strip.mode == "1" else strip) == np.asarray(key)
        if same.ndim == 3:
            same = same.all(axis=2)
        return Image.fromarray(np.where(same, 0, 255).astype(np.uint8))
    if not strip.has_transparency_data:
        return None
    return (strip if strip.mode in ("LA", "RGBA") else strip.convert("RGBA")).getchannel("A")


_SPACES = {"CMYK": b"CMYK", "L": b"GRAY", "RGB": b"RGB "}


def _transform(profile: bytes | None, ink: str) -> ImageCms.ImageCmsTransform | None:
    """The way from ``profile`` to sRGB; ``None`` without a profile, and where it is broken or not for such samples."""
    if not isinstance(profile, bytes) or len(profile) > MAX_PROFILE_BYTES or profile[16:20] != _SPACES[ink]:
        return None
    return _build_transform(profile, ink)


@lru_cache(maxsize=8)
def _build_transform(profile: bytes, ink: str) -> ImageCms.ImageCmsTransform | None:
    try:
        transform = ImageCms.buildTransform(BytesIO(profile), ImageCms.createProfile("sRGB"), ink, "RGB")
        probe = _probe(ink)
        seen = ImageCms.applyTransform(probe, transform)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if seen is None:
        return None
    moved = np.abs(np.asarray(seen, np.int16) - np.asarray(probe.convert("RGB"), np.int16)).max()
    return transform if ink == "CMYK" or moved > SAME_LEVELS else None


def _probe(ink: str) -> Image.Image:
    """Colours from all over the cube (for grey, every level)."""
    if ink == "L":
        return Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    steps = np.linspace(0, 255, 9).astype(np.uint8)
    channels = np.meshgrid(*[steps] * len(ink), indexing="ij")
    flat = np.stack(channels, axis=-1).reshape(1, -1, len(ink))
    return Image.frombytes(ink, (flat.shape[1], 1), flat.tobytes())
