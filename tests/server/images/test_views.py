"""Views: shapes, geometry and determinism of what a stage reads."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from critiq_server.bundles.manifest import CropsView, Filter, NativeView, ResizeView
from critiq_server.images.views import PAD_GREY, apply_view, resizes

FILTERS: tuple[Filter, ...] = ("bilinear", "bicubic", "lanczos", "box")


def ramp(height: int, width: int) -> NDArray[np.uint8]:
    """A picture whose pixels tell where they came from: red is the row, green the column, blue their sum."""
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    return np.stack([rows, columns, rows + columns], axis=-1).astype(np.uint8)


def crops(**changes: int) -> CropsView:
    return CropsView(
        **{"height": 32, "width": 32, "rows": 2, "columns": 3, "shorter_min": 48, "shorter_max": 96} | changes
    )


def corners_of(windows: NDArray[np.uint8]) -> list[tuple[int, int]]:
    return [(int(window[0, 0, 0]), int(window[0, 0, 1])) for window in windows]


@pytest.mark.parametrize("fit", ["stretch", "crop", "crop_rounded", "pad", "pad_black"])
def test_a_picture_that_already_has_the_size_is_not_touched(fit: str) -> None:
    view = ResizeView.model_validate({"height": 40, "width": 60, "fit": fit})
    pixels = ramp(40, 60)
    assert np.shares_memory(apply_view(pixels, view), pixels)
    assert not resizes(view, 40, 60)


@pytest.mark.parametrize("name", FILTERS)
def test_stretch_is_pillows_resize_of_the_whole_picture(name: Filter) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (50, 90, 3), np.uint8)
    expected = Image.fromarray(pixels).resize((30, 20), Image.Resampling[name.upper()])
    assert np.array_equal(apply_view(pixels, ResizeView(height=20, width=30, filter=name)), np.asarray(expected))


@pytest.mark.parametrize(("height", "width"), [(120, 80), (80, 120), (81, 200), (33, 47), (100, 30)])
@pytest.mark.parametrize("name", FILTERS)
def test_crop_is_the_middle_of_the_resized_picture(height: int, width: int, name: Filter) -> None:
    """The shape that image encoders expect: shorter side to 32, longer side in proportion, then the middle."""
    pixels = np.random.default_rng(2).integers(0, 256, (height, width, 3), np.uint8)
    scaled = (32 * height // min(height, width), 32 * width // min(height, width))
    whole = np.asarray(Image.fromarray(pixels).resize(scaled[::-1], Image.Resampling[name.upper()]))
    top, left = (scaled[0] - 32) // 2, (scaled[1] - 32) // 2
    view = apply_view(pixels, ResizeView(height=32, width=32, fit="crop", filter=name))
    assert np.array_equal(view, whole[top : top + 32, left : left + 32])


def test_crop_cuts_without_resizing_when_one_side_fits() -> None:
    view = ResizeView(height=40, width=40, fit="crop")
    assert not resizes(view, 40, 100)
    assert np.array_equal(apply_view(ramp(40, 100), view), ramp(40, 100)[:, 30:70])
    assert np.array_equal(apply_view(ramp(100, 40), view), ramp(100, 40)[30:70])


@pytest.mark.parametrize(("excess", "cut", "cut_rounded"), [(1, 0, 0), (2, 1, 1), (3, 1, 2), (5, 2, 2), (7, 3, 4)])
def test_the_two_middles_differ_where_half_a_pixel_is_left_over(excess: int, cut: int, cut_rounded: int) -> None:
    for fit, left in (("crop", cut), ("crop_rounded", cut_rounded)):
        view = ResizeView.model_validate({"height": 40, "width": 40, "fit": fit})
        assert np.array_equal(apply_view(ramp(40, 40 + excess), view), ramp(40, 40 + excess)[:, left : left + 40])
        assert np.array_equal(apply_view(ramp(40 + excess, 40), view), ramp(40 + excess, 40)[left : left + 40])


def test_black_borders_differ_from_grey_ones_in_their_level_alone() -> None:
    pixels = np.full((20, 40, 3), 200, np.uint8)
    grey, black = (apply_view(pixels, ResizeView(height=40, width=40, fit=fit)) for fit in ("pad", "pad_black"))
    assert (black[:10] == 0).all()
    assert (black[30:] == 0).all()
    assert np.array_equal(black[10:30], grey[10:30])


@pytest.mark.parametrize(("height", "width", "inner"), [(80, 40, (0, 40, 10, 30)), (20, 40, (10, 30, 0, 40))])
def test_pad_keeps_the_ratio_and_centres(height: int, width: int, inner: tuple[int, int, int, int]) -> None:
    """A portrait and a landscape picture, both of one colour, on a square of 40."""
    view = apply_view(np.full((height, width, 3), 200, np.uint8), ResizeView(height=40, width=40, fit="pad"))
    top, bottom, left, right = inner
    assert (view[top:bottom, left:right] == 200).all()
    borders = view.copy()
    borders[top:bottom, left:right] = PAD_GREY
    assert (borders == PAD_GREY).all()


def test_pad_only_adds_borders_when_the_longer_side_fits() -> None:
    view = ResizeView(height=40, width=60, fit="pad")
    assert not resizes(view, 20, 60)
    assert np.array_equal(apply_view(ramp(20, 60), view)[10:30], ramp(20, 60))


def test_crops_touch_all_borders_with_even_steps() -> None:
    windows = apply_view(ramp(64, 92), crops())
    assert corners_of(windows) == [(0, 0), (0, 30), (0, 60), (32, 0), (32, 30), (32, 60)]
    assert np.array_equal(windows[5], ramp(64, 92)[32:, 60:])


def test_crops_of_a_portrait_picture() -> None:
    assert corners_of(apply_view(ramp(112, 50), crops(rows=3, columns=1))) == [(0, 9), (40, 9), (80, 9)]


def test_a_single_window_is_the_middle() -> None:
    assert corners_of(apply_view(ramp(60, 92), crops(rows=1, columns=1))) == [(14, 30)]


@pytest.mark.parametrize(("shorter", "scaled"), [(24, True), (47, True), (48, False), (96, False), (97, True)])
def test_crops_resize_only_outside_their_range(shorter: int, scaled: bool) -> None:
    assert resizes(crops(), shorter, 2 * shorter) is scaled
    assert resizes(crops(), 2 * shorter, shorter) is scaled


def test_crops_are_cut_from_the_picture_resized_in_proportion() -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (192, 300, 3), np.uint8)
    whole = np.asarray(Image.fromarray(pixels).resize((150, 96), Image.Resampling.BICUBIC))
    windows = apply_view(pixels, crops())
    assert np.array_equal(windows[0], whole[:32, :32])
    assert np.array_equal(windows[5], whole[64:, 118:])


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(st.integers(1, 300), st.integers(1, 300)),
    view=st.one_of(
        st.builds(
            ResizeView,
            height=st.integers(1, 120),
            width=st.integers(1, 120),
            fit=st.sampled_from(["stretch", "crop", "crop_rounded", "pad", "pad_black"]),
            filter=st.sampled_from(FILTERS),
        ),
        st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 4), st.integers(1, 4)).flatmap(
            lambda v: st.builds(
                CropsView,
                height=st.just(v[0]),
                width=st.just(v[1]),
                rows=st.just(v[2]),
                columns=st.just(v[3]),
                shorter_min=st.integers(max(v[0], v[1]), 80),
                shorter_max=st.integers(80, 160),
                filter=st.sampled_from(FILTERS),
            )
        ),
    ),
)
def test_any_picture_gets_exactly_the_shape_of_the_view(size: tuple[int, int], view: ResizeView | CropsView) -> None:
    pixels = np.random.default_rng(size[0] * 1000 + size[1]).integers(0, 256, (*size, 3), np.uint8)
    before = pixels.copy()
    seen = apply_view(pixels, view)
    count = (view.rows * view.columns,) if isinstance(view, CropsView) else ()
    assert seen.shape == (*count, view.height, view.width, 3)
    assert seen.dtype == np.uint8
    assert seen.flags.c_contiguous
    assert np.array_equal(seen, apply_view(pixels, view))
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (65, 127), (200, 64)])
def test_a_native_view_leaves_the_resolution_and_cuts_bottom_and_right(height: int, width: int) -> None:
    view = NativeView(shorter_min=64, longer_max=200, multiple=32)
    pixels = ramp(height, width)
    assert not resizes(view, height, width)
    assert np.array_equal(apply_view(pixels, view), pixels[: height // 32 * 32, : width // 32 * 32])
    assert np.shares_memory(apply_view(pixels, NativeView()), pixels)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((30, 40), (64, 85)),
        ((400, 300), (200, 150)),
        ((100, 400), (64, 200)),
        ((1, 900), (64, 200)),
        ((1, 1), (64, 64)),
    ],
)
def test_a_native_view_resizes_outside_its_bounds_only(size: tuple[int, int], shown: tuple[int, int]) -> None:
    view = NativeView(shorter_min=64, longer_max=200)
    assert resizes(view, *size)
    assert apply_view(ramp(*size), view).shape == (*shown, 3)
    assert apply_view(ramp(*size[::-1]), view).shape == (*shown[::-1], 3)


def test_of_a_strip_within_neither_bound_a_native_view_keeps_the_middle() -> None:
    strip = np.repeat(np.repeat(ramp(2, 100), 2, axis=0), 2, axis=1)
    enlarged = np.asarray(Image.fromarray(strip).resize((400, 8), Image.Resampling.BOX))
    view = NativeView(shorter_min=8, longer_max=80, filter="box")
    assert np.array_equal(apply_view(strip, view), enlarged[:, 160:240])


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.integers(1, 40),
    st.integers(0, 60),
    st.integers(0, 100),
)
def test_a_native_view_is_always_within_its_bounds(size: tuple[int, int], multiple: int, more: int, most: int) -> None:
    view = NativeView(shorter_min=multiple + more, longer_max=multiple + more + most, multiple=multiple)
    shown = apply_view(ramp(*size), view)
    assert shown.nbytes <= view.size_bytes
    assert all(side % multiple == 0 and multiple <= side <= view.longer_max for side in shown.shape[:2])


def test_bounds_of_a_native_view_that_leave_no_room_are_refused() -> None:
    for bounds in ({"shorter_min": 64, "longer_max": 63}, {"shorter_min": 16, "multiple": 32}):
        with pytest.raises(ValueError, match="multiple <= shorter_min <= longer_max"):
            NativeView(**bounds)
