"""What a caller sends as a picture, whatever face it came through, and what decoding makes of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from critiq.types import ImageReport

Pixels = NDArray[np.uint8]
"""RGB, ``[height, width, 3]``."""


@dataclass(frozen=True, slots=True)
class EncodedImage:
    """The bytes of a picture file."""

    data: bytes


@dataclass(frozen=True, slots=True)
class RawImage:
    """Pixels in row-major order; ``shape`` in the order of ``layout``; float32 values are 0..1, little-endian."""

    data: bytes
    shape: tuple[int, ...]
    dtype: Literal["uint8", "float32"] = "uint8"
    layout: Literal["hwc", "chw"] = "hwc"


ImageSource = EncodedImage | RawImage


@dataclass(frozen=True, slots=True)
class RemoteImage:
    """A picture that is still where ``url`` says; becomes an :class:`EncodedImage` when it is fetched."""

    url: str

    @property
    def data(self) -> bytes:
        """What came with the request: nothing."""
        return b""


@dataclass(frozen=True, slots=True)
class Decoded:
    """Pixels and what was done to get them."""

    pixels: Pixels
    report: ImageReport
