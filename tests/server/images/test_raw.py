"""Raw tensors: every layout and type that trainers hold, and refusals that name what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq.errors import CritiqError, InvalidArgument, TooLarge
from critiq.types import ImageReport
from critiq_server.images.decode import decode, inspect
from critiq_server.images.headers import Header
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import RawImage

LIMITS = ImageLimits()
PIXELS = np.random.default_rng(3).integers(0, 256, (24, 40, 3), np.uint8)


def refusal(source: RawImage, limits: ImageLimits = LIMITS) -> InvalidArgument:
    with pytest.raises(InvalidArgument) as caught:
        decode(source, limits)
    return caught.value


def floats(values: np.typing.NDArray[np.floating], layout: str = "hwc") -> RawImage:
    return RawImage(values.astype("<f4").tobytes(), values.shape, "float32", "chw" if layout == "chw" else "hwc")


def test_uint8_rgb_rows_are_taken_as_they_are() -> None:
    source = RawImage(PIXELS.tobytes(), (24, 40, 3))
    result = decode(source, LIMITS)
    assert np.array_equal(result.pixels, PIXELS)
    assert np.shares_memory(result.pixels, np.frombuffer(source.data, np.uint8))
    assert result.report == ImageReport("RAW", 40, 24)
    assert inspect(source, LIMITS) == Header("RAW", 40, 24)


def test_planes() -> None:
    planes = np.ascontiguousarray(PIXELS.transpose(2, 0, 1))
    result = decode(RawImage(planes.tobytes(), (3, 24, 40), layout="chw"), LIMITS)
    assert np.array_equal(result.pixels, PIXELS)
    assert result.pixels.flags.c_contiguous
    assert result.report == ImageReport("RAW", 40, 24)


@pytest.mark.parametrize(("shape", "layout"), [((24, 40, 1), "hwc"), ((1, 24, 40), "chw")])
def test_grey(shape: tuple[int, ...], layout: str) -> None:
    source = RawImage(PIXELS[..., 0].tobytes(), shape, layout="chw" if layout == "chw" else "hwc")
    result = decode(source, LIMITS)
    assert np.array_equal(result.pixels, np.repeat(PIXELS[..., :1], 3, axis=2))
    assert result.report == ImageReport("RAW", 40, 24, colour_converted=True)


@pytest.mark.parametrize("layout", ["hwc", "chw"])
def test_floats_are_rounded_to_levels(layout: str) -> None:
    values = np.random.default_rng(4).random((24, 40, 3)).astype(np.float32)
    ordered = values if layout == "hwc" else values.transpose(2, 0, 1)
    result = decode(floats(ordered, layout), LIMITS)
    assert np.array_equal(result.pixels, np.rint(values * 255).astype(np.uint8))
    assert result.report == ImageReport("RAW", 40, 24, depth_scaled=True)


def test_every_level_survives_the_way_through_floats() -> None:
    levels = np.arange(256 * 3, dtype=np.int64).reshape(16, 16, 3).astype(np.uint8)
    assert np.array_equal(decode(floats(levels / 255), LIMITS).pixels, levels)


def test_floats_may_overshoot_by_one_level() -> None:
    values = np.full((24, 40, 3), 0.5)
    values[0, 0, 0], values[1, 1, 1] = -0.9 / 255, 1 + 0.9 / 255
    pixels = decode(floats(values), LIMITS).pixels
    assert (pixels[0, 0, 0], pixels[1, 1, 1]) == (0, 255)


@pytest.mark.parametrize(
    ("value", "words"),
    [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf"), (1.01, "1.01"), (-0.5, "-0.5"), (200.0, "sent as uint8")],
)
def test_bad_values_are_named(value: float, words: str) -> None:
    values = np.full((24, 40, 3), 0.5)
    values[2, 7, 1] = value
    values[20, 1, 1] = 77.0
    error = refusal(floats(values))
    assert "[2, 7, 1]" in error.message
    assert words in error.message
    assert error.field == "image.raw.data"


@pytest.mark.parametrize("missing", [-1, 1, 2880])
def test_the_byte_count_must_be_exact(missing: int) -> None:
    data = PIXELS.tobytes() + b"\0"
    error = refusal(RawImage(data[: 2880 - missing], (24, 40, 3)))
    assert f"{2880 - missing:,} bytes" in error.message
    assert "needs 2,880" in error.message
    assert error.field == "image.raw.data"


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((), "0 numbers"),
        ((24, 40), "2 numbers"),
        ((1, 24, 40, 3), "4 numbers"),
        ((24, 40, 4), "4 channels"),
        ((3, 24, 40), "40 channels in the layout hwc (height, width, channels)"),
        ((0, 40, 3), "no pixels"),
        ((-24, -40, 3), "no pixels"),
        ((8, 40, 3), "at least 16"),
        ((16, 500, 3), "at most 20 times"),
    ],
)
def test_shapes_that_are_no_picture(shape: tuple[int, ...], words: str) -> None:
    error = refusal(RawImage(PIXELS.tobytes(), shape))
    assert words in error.message
    assert error.field == "image.raw.shape"


def test_shapes_that_are_too_large_are_refused_whatever_the_data() -> None:
    assert isinstance(refusal(RawImage(b"", (16_000, 16_000, 3))), TooLarge)
    assert isinstance(refusal(RawImage(b"", (2**40, 2**40, 3))), TooLarge)


@settings(max_examples=300, deadline=None)
@given(
    data=st.binary(max_size=2000),
    shape=st.lists(st.integers(-3, 60) | st.integers(-(2**70), 2**70), max_size=5),
    dtype=st.sampled_from(["uint8", "float32"]),
    layout=st.sampled_from(["hwc", "chw"]),
    fitting=st.booleans(),
)
def test_any_data_and_shape(data: bytes, shape: list[int], dtype: str, layout: str, fitting: bool) -> None:
    """Half of the time the data has the right length, so that the values are reached."""
    if fitting:
        shape = [16, 20, 3] if layout == "hwc" else [3, 16, 20]
        data = (data or b"\0").ljust(960 * (4 if dtype == "float32" else 1), b"\x3e")[
            : 3840 if dtype == "float32" else 960
        ]
    source = RawImage(
        data, tuple(shape), "float32" if dtype == "float32" else "uint8", "chw" if layout == "chw" else "hwc"
    )
    try:
        result = decode(source, LIMITS)
    except CritiqError as error:
        blamed = error.field
    else:
        assert result.pixels.shape == (result.report.height, result.report.width, 3)
        return
    assert blamed in ("image.raw.shape", "image.raw.data")
