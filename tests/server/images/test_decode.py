"""Files of every kind -> the pixels a person sees, and a true report of what was done for them."""

from __future__ import annotations

import struct
import threading
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from critiq.types import ImageReport
from critiq_server.images.colour import WHOLE_PIXELS
from critiq_server.images.decode import decode
from critiq_server.images.headers import ACCEPTED
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import Decoded, EncodedImage
from tests.fixtures.images import (
    ADOBE_RGB,
    animation,
    cmyk_profile,
    encoded,
    grey_profile,
    oriented,
    photo,
    png,
    rgb_profile,
    srgb_profile,
)

LIMITS = ImageLimits()
ROUGH = np.random.default_rng(5).integers(0, 256, (24, 40, 4), np.uint8)

needs_avif = pytest.mark.skipif("AVIF" not in ACCEPTED, reason="this Pillow has no AVIF")


def decoded(data: bytes, background: tuple[int, int, int] = (255, 255, 255)) -> Decoded:
    result = decode(EncodedImage(data), LIMITS, background)
    assert result.pixels.dtype == np.uint8
    assert result.pixels.shape == (result.report.height, result.report.width, 3)
    assert result.pixels.flags.c_contiguous
    return result


def difference(first: NDArray[np.uint8], second: object) -> int:
    return int(np.abs(first.astype(int) - np.asarray(second, int)).max())


def adobe_rgb_in_srgb(colour: tuple[int, int, int]) -> NDArray[np.float64]:
    """From the definitions of both spaces: to light, to XYZ (D50), to sRGB's light, to sRGB's levels."""
    srgb = np.array([(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)])
    light = (np.array(colour) / 255) ** 2.19921875 @ np.array(ADOBE_RGB) @ np.linalg.inv(srgb)
    levels: NDArray[np.float64] = np.rint(
        255 * np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    )
    return levels


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_plain_picture_is_what_pillow_decodes_and_nothing_is_reported(kind: str) -> None:
    data = encoded(photo(), kind)
    with Image.open(BytesIO(data)) as reference:
        expected = np.asarray(reference.convert("RGB"))
    result = decoded(data)
    assert np.array_equal(result.pixels, expected)
    assert result.report == ImageReport(kind, 96, 64)


def test_a_large_picture_is_decoded_strip_by_strip_to_the_same_pixels() -> None:
    large = photo(1501, 1003)
    assert large.width * large.height > WHOLE_PIXELS
    assert np.array_equal(decoded(encoded(large, "PNG", compress_level=1)).pixels, np.asarray(large))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", *(["AVIF"] if "AVIF" in ACCEPTED else [])])
def test_orientation_is_applied(kind: str, orientation: int) -> None:
    data = oriented(photo(), orientation, kind)
    with Image.open(BytesIO(data)) as reference:
        expected = np.asarray(ImageOps.exif_transpose(reference).convert("RGB"))
    result = decoded(data)
    assert np.array_equal(result.pixels, expected)
    assert result.report.orientation_applied is (orientation != 1)
    assert (result.report.width, result.report.height) == ((96, 64) if orientation < 5 else (64, 96))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    result = decoded(oriented(photo(), orientation, "PNG"))
    assert not result.report.orientation_applied
    assert np.array_equal(result.pixels, np.asarray(photo()))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_does_not_refuse_the_picture(exif: bytes) -> None:
    assert not decoded(encoded(photo(), "JPEG", exif=exif)).report.orientation_applied


@pytest.mark.parametrize("background", [(255, 255, 255), (0, 0, 0), (10, 200, 90)])
def test_alpha_is_composited_onto_the_background(background: tuple[int, int, int]) -> None:
    result = decoded(encoded(Image.fromarray(ROUGH), "PNG"), background)
    opacity = ROUGH[..., 3:] / 255
    assert difference(result.pixels, np.rint(ROUGH[..., :3] * opacity + np.array(background) * (1 - opacity))) <= 1
    assert result.report == ImageReport("PNG", 40, 24, alpha_flattened=True)


def test_hidden_colours_of_transparent_pixels_do_not_show() -> None:
    hidden = ROUGH.copy()
    hidden[..., 3] = 0
    assert (decoded(encoded(Image.fromarray(hidden), "WEBP", lossless=True, exact=True)).pixels == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_an_opaque_alpha_channel_is_dropped_without_a_word(kind: str) -> None:
    opaque = ROUGH.copy()
    opaque[..., 3] = 255
    result = decoded(encoded(Image.fromarray(opaque), kind, lossless=True))
    assert np.array_equal(result.pixels, ROUGH[..., :3])
    assert not result.report.alpha_flattened


def test_a_grey_picture_with_alpha() -> None:
    result = decoded(encoded(Image.fromarray(ROUGH[..., ::3].copy(), "LA"), "PNG"))
    opacity = ROUGH[..., 3] / 255
    assert difference(result.pixels[..., 1], np.rint(ROUGH[..., 0] * opacity + 255 * (1 - opacity))) <= 1
    assert result.report == ImageReport("PNG", 40, 24, alpha_flattened=True, colour_converted=True)


def test_a_palette_with_one_transparent_entry() -> None:
    entries = ROUGH[:, :, 0] % 4
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    result = decoded(png(entries, 3, 2, palette=colours.tobytes(), transparency=b"\xff\x00"), (1, 2, 3))
    colours[1] = (1, 2, 3)
    assert np.array_equal(result.pixels, colours[entries])
    assert result.report == ImageReport("PNG", 40, 24, alpha_flattened=True, colour_converted=True)


def test_a_palette_with_opacities() -> None:
    entries = ROUGH[:, :, 0] % 3
    palette = bytes([200, 0, 0, 0, 200, 0, 0, 0, 200])
    result = decoded(png(entries, 3, 8, palette=palette, transparency=bytes([0, 51, 255])), (255, 255, 255))
    expected = np.array([[255, 255, 255], [204, 244, 204], [0, 0, 200]])
    assert difference(result.pixels, expected[entries]) <= 1


def test_an_opaque_palette() -> None:
    result = decoded(encoded(photo().quantize(16), "PNG"))
    assert np.array_equal(result.pixels, np.asarray(photo().quantize(16).convert("RGB")))
    assert result.report == ImageReport("PNG", 96, 64, colour_converted=True)


def test_a_transparent_colour_of_an_rgb_picture() -> None:
    levels = ROUGH[..., :3] // 128 * 255
    result = decoded(png(levels, 2, 8, transparency=struct.pack(">3H", 255, 0, 255)), (7, 7, 7))
    expected = np.where((levels == [255, 0, 255]).all(axis=2, keepdims=True), 7, levels)
    assert np.array_equal(result.pixels, expected)
    assert result.report.alpha_flattened


@pytest.mark.parametrize(("depth", "level"), [(1, 1), (2, 2), (4, 11), (8, 200), (16, 40_000)])
def test_a_transparent_level_of_a_grey_picture_of_any_depth(depth: int, level: int) -> None:
    largest = 2**depth - 1
    levels = np.random.default_rng(6).integers(0, largest + 1, (24, 40), np.uint16)
    levels[:3] = level
    result = decoded(png(levels, 0, depth, transparency=struct.pack(">H", level)), (250, 0, 0))
    expected = np.repeat(np.rint(levels * (255 / largest)).astype(np.uint8)[..., None], 3, axis=2)
    expected[levels == level] = (250, 0, 0)
    assert np.array_equal(result.pixels, expected)
    assert result.report == ImageReport(
        "PNG", 40, 24, alpha_flattened=True, colour_converted=True, depth_scaled=depth == 16
    )


def test_grey_of_16_bits_is_scaled_not_clipped() -> None:
    levels = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)
    result = decoded(png(levels, 0, 16))
    assert np.array_equal(result.pixels[..., 0], np.rint(levels / 257).astype(np.uint8))
    assert result.report == ImageReport("PNG", 40, 24, depth_scaled=True, colour_converted=True)


@pytest.mark.parametrize(("colour_type", "channels"), [(2, 3), (6, 4), (4, 2)])
def test_colour_of_16_bits_is_within_one_level(colour_type: int, channels: int) -> None:
    levels = np.random.default_rng(8).integers(0, 65536, (24, 40, channels), np.uint16)
    if channels % 2 == 0:
        levels[..., -1] = 65535
    result = decoded(png(levels, colour_type, 16))
    assert difference(result.pixels, np.broadcast_to(levels[..., : 3 if channels > 2 else 1] / 257, (24, 40, 3))) <= 1
    assert result.report.depth_scaled
    assert not result.report.alpha_flattened


def test_a_transparent_colour_of_16_bits() -> None:
    levels = np.random.default_rng(9).integers(0, 65536, (24, 40, 3), np.uint16)
    levels[4:8] = (1000, 50_000, 3)
    result = decoded(png(levels, 2, 16, transparency=struct.pack(">3H", 1000, 50_000, 3)), (1, 2, 3))
    assert (result.pixels[4:8] == (1, 2, 3)).all()
    assert result.report.alpha_flattened


@pytest.mark.parametrize("mode", ["1", "L"])
def test_grey_becomes_three_equal_channels(mode: str) -> None:
    result = decoded(encoded(photo().convert(mode), "PNG"))
    assert np.array_equal(result.pixels, np.asarray(photo().convert(mode).convert("RGB")))
    assert result.report == ImageReport("PNG", 96, 64, colour_converted=True)


def test_cmyk_without_a_profile() -> None:
    """Adobe writes CMYK inverted into JPEG files; an error there would turn the picture into its negative."""
    result = decoded(encoded(photo().convert("CMYK"), "JPEG", quality=95))
    assert np.abs(result.pixels.astype(int) - np.asarray(photo(), int)).mean() < 4
    assert result.report == ImageReport("JPEG", 96, 64, colour_converted=True)


def test_cmyk_goes_through_its_profile() -> None:
    """Of a printer whose cyan is CIELAB (55, 60, -50), a violet that no formula for cyan would give."""
    profile = cmyk_profile(cyan=(140, 188, 78))
    halves = np.zeros((32, 32, 4), np.uint8)
    halves[16:, :, 0] = 255
    data = encoded(Image.fromarray(halves, "CMYK"), "JPEG", quality=100, icc_profile=profile)
    result = decoded(data)
    paper, violet = result.pixels[4, 4], result.pixels[28, 28].astype(int)
    assert paper.min() > 250
    assert violet[2] > violet[0] > violet[1] + 50
    assert result.report == ImageReport("JPEG", 32, 32, colour_converted=True)


def test_an_embedded_srgb_profile_changes_nothing() -> None:
    result = decoded(encoded(photo(), "PNG", icc_profile=srgb_profile()))
    assert np.array_equal(result.pixels, np.asarray(photo()))
    assert result.report == ImageReport("PNG", 96, 64)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", *(["AVIF"] if "AVIF" in ACCEPTED else [])])
def test_another_profile_is_converted_to_srgb(kind: str) -> None:
    plain = Image.new("RGB", (32, 32), (100, 150, 100))
    result = decoded(encoded(plain, kind, icc_profile=rgb_profile(), quality=100))
    expected = adobe_rgb_in_srgb((100, 150, 100))
    assert difference(result.pixels, np.broadcast_to(expected, (32, 32, 3))) <= (1 if kind == "PNG" else 8)
    assert result.report == ImageReport(kind, 32, 32, colour_converted=True)


def test_a_profile_and_alpha_together() -> None:
    plain = Image.new("RGBA", (32, 32), (100, 150, 100, 128))
    result = decoded(encoded(plain, "PNG", icc_profile=rgb_profile()))
    expected = np.rint(adobe_rgb_in_srgb((100, 150, 100)) * (128 / 255) + 255 * (127 / 255))
    assert difference(result.pixels, np.broadcast_to(expected, (32, 32, 3))) <= 1
    assert result.report == ImageReport("PNG", 32, 32, colour_converted=True, alpha_flattened=True)


def test_a_grey_profile_is_converted() -> None:
    """Level 128 at gamma 1 is half the light, which sRGB writes as 188."""
    data = encoded(Image.new("L", (32, 32), 128), "PNG", icc_profile=grey_profile(1.0))
    assert difference(decoded(data).pixels, np.full((32, 32, 3), 188)) <= 1


@pytest.mark.parametrize(
    "profile",
    [b"nonsense", b"\0" * 200, srgb_profile()[:150], grey_profile(1.0), cmyk_profile((140, 188, 78)), b""],
)
def test_a_profile_that_is_broken_or_of_another_kind_is_ignored(profile: bytes) -> None:
    result = decoded(encoded(photo(), "PNG", icc_profile=profile))
    assert np.array_equal(result.pixels, np.asarray(photo()))
    assert not result.report.colour_converted


@pytest.mark.parametrize("kind", ["PNG", "WEBP", *(["AVIF"] if "AVIF" in ACCEPTED else [])])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    options = {"quality": 95} if kind == "AVIF" else {"lossless": True}
    frames = [photo(seed=1), photo(seed=2), photo(seed=3)]
    result = decoded(animation(kind, frames, **options))
    assert difference(result.pixels, frames[0]) <= (16 if kind == "AVIF" else 0)
    assert result.report == ImageReport(kind, 96, 64, first_frame_only=True)


def test_the_jpeg_files_of_phones_that_hold_a_second_picture() -> None:
    result = decoded(animation("MPO", [photo(seed=1), photo(seed=2)], quality=95))
    assert np.abs(result.pixels.astype(int) - np.asarray(photo(seed=1), int)).mean() < 3
    assert result.report == ImageReport("JPEG", 96, 64, first_frame_only=True)


def test_threads_decode_to_the_same_pixels() -> None:
    """One transform is shared by all pictures with the same profile."""
    data = [encoded(photo(300, 200, seed), "PNG", icc_profile=rgb_profile()) for seed in range(4)]
    alone = [decoded(file).pixels for file in data]
    different: list[int] = []

    def work() -> None:
        for _ in range(10):
            different.extend(i for i, file in enumerate(data) if not np.array_equal(decoded(file).pixels, alone[i]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert different == []
