"""Pixels -> what a stage reads: a resized picture, a grid of windows, or the picture as it is.

Every step is Pillow's antialiased resampling, OpenCV's cubic one (our own code) or a plain copy, so a view of the same
pixels is the same on every call; the geometry is whole pixels, decided by the functions at the end of this page alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from critiq_server.bundles.manifest import CropsView, Filter, FiveCropsView, NativeView, ResizeView, View
from critiq_server.images.cubic import resize_cubic
from critiq_server.images.source import Pixels

PILLOW_FILTERS: dict[Filter, Image.Resampling] = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}
PAD_GREY = 128
"""Level of the borders that ``fit="pad"`` adds, in all three channels; ``pad_black`` adds 0."""

Size = tuple[int, int]
"""``(height, width)`` in pixels."""


def apply_view(pixels: Pixels, view: View) -> NDArray[np.uint8]:
    """``pixels`` (RGB uint8 ``[height, width, 3]``) as ``view`` shows them.

    Returns C-contiguous uint8: ``[view.height, view.width, 3]`` for a :class:`ResizeView`, and
    ``[view.rows * view.columns, view.height, view.width, 3]``, row by row, for a :class:`CropsView`;
    ``[5, view.height, view.width, 3]`` for a :class:`FiveCropsView`; ``[height, width, 3]`` with sides that depend on
    the picture's for a :class:`NativeView`. The result may be read-only, and is ``pixels`` itself where the view
    changes nothing. Raises nothing for a picture of at least 1 x 1.
    """
    if isinstance(view, NativeView):
        return _native(pixels, view)
    if isinstance(view, CropsView | FiveCropsView):
        return _crops(pixels, view)
    if view.fit in ("crop", "crop_rounded"):
        return _resized_middle(pixels, view)
    if view.fit in ("pad", "pad_black"):
        return _padded(pixels, view)
    return np.ascontiguousarray(_resized(pixels, (view.height, view.width), view.filter))


def resizes(view: View, height: int, width: int) -> bool:
    """Whether ``view`` shows a picture of ``height`` x ``width`` pixels at another resolution than its own."""
    return _scaled_size(view, (height, width)) != (height, width)


def _native(pixels: Pixels, view: NativeView) -> Pixels:
    scaled = _resized(pixels, _scaled_size(view, _size(pixels)), view.filter)
    kept = [min(side, view.longer_max) for side in _size(scaled)]
    top, left = (_middle(side, length) for side, length in zip(_size(scaled), kept, strict=True))
    height, width = (length // view.multiple * view.multiple for length in kept)
    return np.ascontiguousarray(scaled[top : top + height, left : left + width])


def _crops(pixels: Pixels, view: CropsView | FiveCropsView) -> NDArray[np.uint8]:
    scaled = _resized(pixels, _scaled_size(view, _size(pixels)), view.filter)
    corners = _corners(view, *_size(scaled))
    windows = np.empty((len(corners), view.height, view.width, 3), np.uint8)
    for window, (top, left) in zip(windows, corners, strict=True):
        window[...] = scaled[top : top + view.height, left : left + view.width]
    return windows


def _resized_middle(pixels: Pixels, view: ResizeView) -> Pixels:
    """Resized whole, then cut, as CLIP-shaped encoders expect: resampling the middle alone differs a little."""
    scaled = _resized(pixels, _scaled_size(view, _size(pixels)), view.filter)
    middle = _rounded_middle if view.fit == "crop_rounded" else _middle
    top, left = middle(scaled.shape[0], view.height), middle(scaled.shape[1], view.width)
    return np.ascontiguousarray(scaled[top : top + view.height, left : left + view.width])


def _padded(pixels: Pixels, view: ResizeView) -> Pixels:
    scaled = _resized(pixels, _scaled_size(view, _size(pixels)), view.filter)
    height, width = _size(scaled)
    if (height, width) == (view.height, view.width):
        return np.ascontiguousarray(scaled)
    canvas = np.full((view.height, view.width, 3), 0 if view.fit == "pad_black" else PAD_GREY, np.uint8)
    top, left = _middle(view.height, height), _middle(view.width, width)
    canvas[top : top + height, left : left + width] = scaled
    return canvas


def _resized(pixels: Pixels, size: Size, name: Filter) -> Pixels:
    if size == _size(pixels):
        return pixels
    if name == "opencv_cubic":
        return resize_cubic(pixels, *size)
    return np.asarray(Image.fromarray(pixels).resize((size[1], size[0]), PILLOW_FILTERS[name]))


def _scaled_size(view: View, size: Size) -> Size:
    """Size of the whole picture when it has the resolution at which ``view`` shows it."""
    height, width = size
    if isinstance(view, NativeView):
        return _native_size(view, height, width)
    if isinstance(view, CropsView | FiveCropsView):
        shorter = min(size)
        target = min(max(shorter, view.shorter_min), view.shorter_max)
        return _times(height, target, shorter), _times(width, target, shorter)
    if view.fit == "stretch":
        return view.height, view.width
    narrower = width * view.height < height * view.width  # than the view
    if view.fit in ("crop", "crop_rounded"):
        # Rounded down, as the preparation of CLIP-shaped encoders does.
        if narrower:
            return max(view.height, height * view.width // width), view.width
        return view.height, max(view.width, width * view.height // height)
    if narrower:
        return view.height, max(1, _times(width, view.height, height))
    return max(1, _times(height, view.width, width)), view.width


def _native_size(view: NativeView, height: int, width: int) -> Size:
    """Enlarging wins where both bounds are broken: what is too long then is cut."""
    shorter, longer = min(height, width), max(height, width)
    numerator, denominator = 1, 1
    if longer > view.longer_max:
        numerator, denominator = view.longer_max, longer
    if shorter * numerator < view.shorter_min * denominator:
        numerator, denominator = view.shorter_min, shorter
    return _times(height, numerator, denominator), _times(width, numerator, denominator)


def _corners(view: CropsView | FiveCropsView, height: int, width: int) -> list[Size]:
    """Top and left of each window on a picture of ``height`` x ``width``."""
    if isinstance(view, FiveCropsView):
        bottom, right = height - view.height, width - view.width
        middle = (_middle(height, view.height), _middle(width, view.width))
        return [(0, 0), (0, right), (bottom, 0), (bottom, right), middle]
    tops, lefts = _grid(height, view.height, view.rows), _grid(width, view.width, view.columns)
    return [(top, left) for top in tops for left in lefts]


def _times(length: int, numerator: int, denominator: int) -> int:
    """``length * numerator / denominator`` to the nearest whole number."""
    return (2 * length * numerator + denominator) // (2 * denominator)


def _grid(length: int, window: int, count: int) -> list[int]:
    """Where ``count`` windows start on ``length`` pixels: evenly spaced from border to border, or one in the middle."""
    if count == 1:
        return [_middle(length, window)]
    return [_times(length - window, i, count - 1) for i in range(count)]


def _middle(length: int, window: int) -> int:
    return (length - window) // 2


def _rounded_middle(length: int, window: int) -> int:
    """To the nearest pixel, halves to the even one."""
    return round((length - window) / 2)


def _size(pixels: Pixels) -> Size:
    return pixels.shape[0], pixels.shape[1]
