"""Pictures to score, each with pixels of its own, cheap enough to make one for every request."""

from __future__ import annotations

import io
from dataclasses import dataclass
from itertools import combinations
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 512
JPEG_QUALITY = 92
_BASES = 32
_QUANTISERS = range(1, 22)
"""Positions in a JPEG's luminance table that copies vary: low frequencies, which every block of these pictures has."""


@dataclass(frozen=True, slots=True)
class Picture:
    """What a request carries: a file's bytes, or an uint8 tensor ``[height, width, 3]`` if ``shape`` is set."""

    data: bytes
    shape: tuple[int, int, int] | None = None


class Album(Protocol):
    """An endless supply of pictures; equal numbers give equal pictures."""

    def __getitem__(self, number: int) -> Picture: ...


class JpegAlbum:
    """512x512 JPEG files of about 110 kB.

    There are 32 different scenes. Each further copy of a scene has three of its quantiser steps enlarged by one: that
    changes three bytes of the file and nearly all of its pixels, so 32 * 1,330 = 42,560 pictures differ in content.
    """

    def __init__(self) -> None:
        self._scenes = [_encode(_scene(seed)) for seed in range(_BASES)]
        self._changes = list(combinations(_QUANTISERS, 3))

    def __getitem__(self, number: int) -> Picture:
        scene = self._scenes[number % _BASES]
        table = scene.index(b"\xff\xdb\x00\x43\x00") + 5
        changed = bytearray(scene)
        for position in self._changes[number // _BASES % len(self._changes)]:
            changed[table + position] += 1
        return Picture(bytes(changed))


class RawAlbum:
    """uint8 tensors: one scene, with the picture's number in its first pixels."""

    def __init__(self, side: int = SIDE) -> None:
        pixels = _scene(0) if side == SIDE else np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
        self._rest = pixels.tobytes()[8:]
        self._shape = (side, side, 3)

    def __getitem__(self, number: int) -> Picture:
        return Picture(number.to_bytes(8, "little") + self._rest, self._shape)


Kind = Literal["jpeg", "raw", "tiny"]


def make_album(kind: Kind) -> Album:
    """``tiny``: raw tensors of 8x8 pixels."""
    if kind == "jpeg":
        return JpegAlbum()
    return RawAlbum(SIDE if kind == "raw" else 8)


def _scene(seed: int) -> NDArray[np.uint8]:
    """Light, texture and grain at several scales: compresses like a photograph. ``[512, 512, 3]``"""
    generator = np.random.default_rng(seed)
    total = np.zeros((SIDE, SIDE, 3), np.float32)
    for cell, contrast in ((128, 40), (32, 24), (8, 14), (2, 14), (1, 14)):
        noise = generator.integers(0, 256, (SIDE // cell, SIDE // cell, 3), np.uint8)
        spread = Image.fromarray(noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        total += contrast * (np.asarray(spread, np.float32) / 128 - 1)
    return np.clip(128 + total, 0, 255).astype(np.uint8)


def _encode(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
