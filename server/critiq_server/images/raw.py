"""Raw tensors, as trainers hold them -> RGB pixels."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from critiq.errors import InvalidArgument
from critiq.types import ImageReport
from critiq_server.images.headers import Header
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import Decoded, Pixels, RawImage

TOLERANCE = 1 / 255
"""How far a float value may lie outside 0..1: resampling and rounding overshoot a little."""

_BYTES = {"uint8": 1, "float32": 4}


def raw_header(source: RawImage, limits: ImageLimits) -> Header:
    """Size of a raw tensor. Raises as :func:`decode_raw`, except for what its values are wrong in."""
    if source.dtype not in _BYTES:
        raise InvalidArgument(f"{source.dtype!r} is unknown; use uint8 or float32", field="image.raw.dtype")
    if source.layout not in ("hwc", "chw"):
        raise InvalidArgument(f"{source.layout!r} is unknown; use hwc or chw", field="image.raw.layout")
    names = "height, width, channels" if source.layout == "hwc" else "channels, height, width"
    shape = tuple(source.shape)
    if len(shape) != 3:
        raise InvalidArgument(f"the shape has {len(shape)} numbers; it needs three: {names}", field="image.raw.shape")
    channels = shape[2] if source.layout == "hwc" else shape[0]
    height, width = shape[:2] if source.layout == "hwc" else shape[1:]
    if channels not in (1, 3):
        raise InvalidArgument(
            f"the shape {list(shape)} means {channels} channels in the layout {source.layout} ({names}); "
            "there must be 3 (RGB) or 1 (grey)",
            field="image.raw.shape",
        )
    if min(height, width) <= 0:
        raise InvalidArgument(f"the shape {list(shape)} holds no pixels", field="image.raw.shape")
    limits.check_size(width, height, "image.raw.shape")
    expected = prod(shape) * _BYTES[source.dtype]
    if len(source.data) != expected:
        raise InvalidArgument(
            f"there are {len(source.data):,} bytes; the shape {list(shape)} of {source.dtype} needs {expected:,}",
            field="image.raw.data",
        )
    return Header("RAW", width, height)


def decode_raw(source: RawImage, limits: ImageLimits) -> Decoded:
    """RGB pixels of a raw tensor; uint8 RGB in ``hwc`` order is not copied.

    Float values become ``round(255 * value)``. Raises ``InvalidArgument`` for a shape, type or layout that is no
    picture, a byte count that does not fit the shape, and values that are not finite or not in 0..1 (within
    1/255); ``TooLarge`` beyond ``limits``.
    """
    header = raw_header(source, limits)
    if source.dtype == "float32":
        values = _scaled(_checked(np.frombuffer(source.data, "<f4").reshape(source.shape)))
    else:
        values = np.frombuffer(source.data, np.uint8).reshape(source.shape)
    planes = values if source.layout == "hwc" else values.transpose(1, 2, 0)
    grey = planes.shape[2] == 1
    report = ImageReport(
        header.format,
        header.width,
        header.height,
        depth_scaled=source.dtype == "float32",
        colour_converted=grey,
    )
    return Decoded(np.repeat(planes, 3, axis=2) if grey else np.ascontiguousarray(planes), report)


def _checked(values: NDArray[np.float32]) -> NDArray[np.float32]:
    # Minimum and maximum are NaN if any value is, so that two passes without a temporary array clear a good picture.
    if values.min() >= -TOLERANCE and values.max() <= 1 + TOLERANCE:
        return values
    flat = values.reshape(-1)
    good = (flat >= -TOLERANCE) & (flat <= 1 + TOLERANCE)
    first = int(np.argmin(good))
    at = [int(i) for i in np.unravel_index(first, values.shape)]
    hint = "; values of 0..255 are sent as uint8" if 2 < flat[first] <= 255 else ""
    raise InvalidArgument(
        f"the value at {at} is {flat[first]:g}; float32 values must lie in 0..1{hint}", field="image.raw.data"
    )


def _scaled(values: NDArray[np.float32]) -> Pixels:
    """``round(255 * value)``, one row (or plane) at a time, so that no second float picture is held."""
    scaled = np.empty(values.shape, np.uint8)
    for row, out in zip(values, scaled, strict=True):
        out[...] = np.clip(np.rint(row * np.float32(255)), 0, 255)
    return scaled
