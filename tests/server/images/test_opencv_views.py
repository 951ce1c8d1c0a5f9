"""OpenCV's cubic filter, and the five crops."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from critiq_server.bundles.manifest import FiveCropsView, ResizeView
from critiq_server.images.cubic import resize_cubic
from critiq_server.images.views import apply_view, resizes

FIXTURE = Path(__file__).parents[3].parent / "shared" / "parity" / "preprocessing" / "cv2_cubic.npz"


def noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.skipif(not FIXTURE.exists(), reason="the fixtures made with OpenCV are not here")
@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_pixels_are_opencvs_to_the_last_bit(name: str) -> None:
    with np.load(FIXTURE) as arrays:
        pixels, expected = arrays[f"image_{name}"], arrays[f"resized_{name}"]
    assert np.array_equal(apply_view(pixels, ResizeView(height=224, width=224, filter="opencv_cubic")), expected)


def test_a_quarter_of_the_size_takes_four_pixels_and_no_average() -> None:
    """Between the pixels 4k + 1 and 4k + 2, half way: weights -3/32, 19/32, 19/32, -3/32."""
    pixels = noise(40, 40)
    rows = pixels.astype(float).reshape(10, 4, 40, 3)
    weights = np.array([-3, 19, 19, -3]) / 32
    lines = np.einsum("atbc,t->abc", rows, weights).reshape(10, 10, 4, 3)
    expected = np.clip(np.einsum("abtc,t->abc", lines, weights), 0, 255)
    assert np.abs(resize_cubic(pixels, 10, 10) - expected).max() <= 0.5


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 2)])
def test_tiny_and_flat_pictures_keep_their_level(size: tuple[int, int]) -> None:
    assert (resize_cubic(np.full((*size, 3), 77, np.uint8), 5, 8) == 77).all()


def test_the_same_size_changes_nothing() -> None:
    pixels = noise(12, 9)
    assert np.array_equal(resize_cubic(pixels, 12, 9), pixels)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (64, 40)])
def test_five_crops_are_corners_and_middle(height: int, width: int) -> None:
    pixels = noise(height, width)
    view = FiveCropsView(height=32, width=32, shorter_min=32, shorter_max=64)
    down, right = height - 32, width - 32
    middle = (height // 2 - 16, width // 2 - 16)
    expected = [pixels[y : y + 32, x : x + 32] for y, x in [(0, 0), (0, right), (down, 0), (down, right), middle]]
    assert np.array_equal(apply_view(pixels, view), np.stack(expected))
    assert not resizes(view, height, width)


def test_five_crops_of_a_small_picture_enlarge_it_first() -> None:
    view = FiveCropsView(height=32, width=32, shorter_min=32, shorter_max=64, filter="opencv_cubic")
    pixels = noise(16, 24)
    assert resizes(view, 16, 24)
    assert np.array_equal(apply_view(pixels, view)[0], resize_cubic(pixels, 32, 48)[:, :32])


def test_five_crops_must_fit() -> None:
    with pytest.raises(ValueError, match="shorter_min"):
        FiveCropsView(height=32, width=48, shorter_min=32, shorter_max=64)
