"""What is refused, with which words; and that nothing but a refusal comes of a stranger's bytes."""

from __future__ import annotations

import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from critiq.errors import CritiqError, InvalidArgument, TooLarge
from critiq_server.images.decode import decode, inspect
from critiq_server.images.headers import ACCEPTED, Header
from critiq_server.images.limits import PILLOW_MAX_PIXELS, ImageLimits
from critiq_server.images.source import EncodedImage
from tests.fixtures.images import animation, encoded, oriented, photo, png, png_bomb, rgb_profile

LIMITS = ImageLimits()


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> CritiqError:
    with pytest.raises(InvalidArgument) as caught:
        decode(EncodedImage(data), limits)
    assert caught.value.field == "image.encoded"
    return caught.value


def riff(chunk: bytes, content: bytes) -> bytes:
    body = b"WEBP" + chunk + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


@pytest.mark.parametrize("kind", ACCEPTED)
@pytest.mark.parametrize("size", [(96, 64), (33, 517)])
def test_inspect_reads_format_and_size(kind: str, size: tuple[int, int]) -> None:
    for data in (encoded(photo(*size), kind), encoded(photo(*size), kind, lossless=True)):
        assert inspect(EncodedImage(data), LIMITS) == Header(kind, *size)


def test_inspect_reads_animations_and_long_metadata() -> None:
    frames = [photo(seed=1), photo(seed=2)]
    assert inspect(EncodedImage(animation("WEBP", frames)), LIMITS) == Header("WEBP", 96, 64)
    long = encoded(photo(), "JPEG", icc_profile=rgb_profile() + bytes(200_000), comment="x" * 60_000, progressive=True)
    assert inspect(EncodedImage(long), LIMITS) == Header("JPEG", 96, 64)
    assert inspect(EncodedImage(oriented(photo(), 6)), LIMITS) == Header("JPEG", 96, 64)


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (encoded(photo(), "GIF"), "a GIF file"),
        (encoded(photo(), "TIFF"), "a TIFF file"),
        (encoded(photo(), "BMP"), "a BMP file"),
        (encoded(photo(), "ICO"), "an ICO file"),
        (encoded(photo(), "EPS"), "a PostScript file"),
        (encoded(photo(), "PDF"), "a PDF file"),
        (encoded(photo(), "JPEG2000"), "a JPEG 2000 file"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic", "a HEIF file"),
        (b"\0\0\0\x1cftypmif1\0\0\0\0mif1heic", "a HEIF file"),
        (b"\0\0\0\x1cftypisom\0\0\0\0isommp42", "a video"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "an SVG file"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b'{"image": "x"}', "JSON text"),
        (b"iVBORw0KGgoAAAANSUhEUg", "base64 text"),
        (b"data:image/png;base64,iVBORw0KGgo", "a data URL"),
        (b"https://example.org/cat.png", "a URL"),
        (b"no picture at all", "no picture in a known format"),
        (b"\x89PN", "no picture in a known format"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, named: str) -> None:
    error = refusal(data)
    assert named in error.message
    assert "JPEG, PNG, WEBP" in error.message


def test_nothing_at_all() -> None:
    assert "0 bytes" in refusal(b"").message


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\xff\xd8\xff", "JPEG"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "JPEG"),
        (b"\xff\xd8\xff\xda" + bytes(100), "JPEG"),
        (b"\x89PNG\r\n\x1a\n", "PNG"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\x0dIDAT" + bytes(40), "PNG"),
        (png_bomb(0, 20), "PNG"),
        (b"RIFF\x04\0\0\0WEBP", "WEBP"),
        (riff(b"VP8L", b"\x2f"), "WEBP"),
        *([(b"\0\0\0\x1cftypavif\0\0\0\0mif1avif" + bytes(60), "AVIF")] if "AVIF" in ACCEPTED else []),
    ],
)
def test_broken_headers(data: bytes, kind: str) -> None:
    assert f"the {kind} file is truncated or damaged (its header is unreadable)" in refusal(data).message


@pytest.mark.parametrize("kind", [*ACCEPTED, "MPO"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.95])
def test_truncated_files(kind: str, kept: float) -> None:
    data = encoded(photo(200, 150), kind)
    assert not ImageFile.LOAD_TRUNCATED_IMAGES
    assert "truncated" in refusal(data[: int(len(data) * kept)]).message


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "JPEG"])
@pytest.mark.parametrize("missing", [2, 5, 20])
def test_files_that_lack_only_their_last_bytes(kind: str, missing: int) -> None:
    assert "truncated" in refusal(encoded(photo(200, 150), kind)[:-missing]).message


def test_a_png_file_that_holds_too_few_pixels() -> None:
    assert "truncated or damaged" in refusal(png_bomb(4000, 4000)).message


def test_damaged_contents() -> None:
    data = bytearray(encoded(photo(200, 150), "PNG"))
    data[len(data) // 2] ^= 0xFF
    error = refusal(bytes(data))
    assert "PNG file is truncated or damaged (" in error.message


def test_decoders_messages_show_no_addresses() -> None:
    broken = bytearray(encoded(photo(), "PNG"))
    broken[24] = 77  # a depth that does not exist
    assert "PNG file is truncated or damaged (its header is unreadable)" in refusal(bytes(broken)).message


def test_bytes() -> None:
    data = encoded(photo(), "PNG")
    assert isinstance(refusal(data, ImageLimits(max_bytes=len(data) - 1)), TooLarge)
    assert f"{len(data):,} bytes" in refusal(data, ImageLimits(max_bytes=len(data) - 1)).message
    assert decode(EncodedImage(data), ImageLimits(max_bytes=len(data))).report.format == "PNG"


@pytest.mark.parametrize("bomb", [png_bomb(60_000, 60_000), riff(b"VP8X", bytes(4) + b"\xff\x3f\0" * 2)])
def test_bombs_are_refused_before_memory_is_taken(bomb: bytes) -> None:
    tracemalloc.start()
    error = refusal(bomb)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert isinstance(error, TooLarge)
    assert "no side may have more than 16,384" in error.message or "at most 50,000,000 are accepted" in error.message
    assert taken < 1_000_000


def test_pixels() -> None:
    data = encoded(photo(100, 80), "PNG")
    error = refusal(data, ImageLimits(max_pixels=7999))
    assert isinstance(error, TooLarge)
    assert "100 x 80 pixels, 8,000 in all; at most 7,999 are accepted" in error.message
    assert decode(EncodedImage(data), ImageLimits(max_pixels=8000)).report.width == 100


def test_sides() -> None:
    error = refusal(encoded(photo(100, 80), "PNG"), ImageLimits(max_side=99))
    assert isinstance(error, TooLarge)
    assert "no side may have more than 99" in error.message
    error = refusal(encoded(photo(15, 80), "PNG"))
    assert not isinstance(error, TooLarge)
    assert "15 x 80 pixels; its shorter side must have at least 16" in error.message


def test_aspect() -> None:
    assert "at most 20 times the shorter" in refusal(encoded(photo(20, 401), "PNG")).message
    assert decode(EncodedImage(encoded(photo(20, 400), "PNG")), LIMITS).report.height == 400


def test_a_setting_beyond_pillows_own_limit_is_an_error() -> None:
    assert Image.MAX_IMAGE_PIXELS == PILLOW_MAX_PIXELS
    with pytest.raises(ValueError, match="max_pixels"):
        ImageLimits(max_pixels=PILLOW_MAX_PIXELS + 1)


def test_a_jpeg_file_may_not_ask_for_endless_passes() -> None:
    """Scan headers of a few bytes each, which each make the decoder go over the whole picture."""
    data = encoded(photo(400, 300), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    bomb = data[:last] + data[last : last + 10] * 5000 + data[last:]
    assert "passes over 400 x 300 pixels" in refusal(bomb, ImageLimits(max_pixels=120_000)).message
    assert decode(EncodedImage(data), ImageLimits(max_pixels=120_000)).report.width == 400


def samples() -> list[bytes]:
    rgba = np.random.default_rng(1).integers(0, 256, (20, 30, 4), np.uint8)
    files = [encoded(photo(40, 30), kind) for kind in ACCEPTED]
    files += [oriented(photo(40, 30), 6, kind) for kind in ("JPEG", "PNG", "WEBP")]
    files += [encoded(Image.fromarray(rgba), kind, icc_profile=rgb_profile()) for kind in ("PNG", "WEBP")]
    files += [animation(kind, [photo(40, 30, 1), photo(40, 30, 2)]) for kind in ("PNG", "WEBP", "MPO")]
    files += [encoded(photo(40, 30).convert("CMYK")), encoded(photo(40, 30), progressive=True)]
    files += [encoded(photo(40, 30).quantize(8), "PNG"), png(rgba[..., 0].astype(np.uint16) * 257, 0, 16)]
    return files


def survives(data: bytes) -> None:
    """Either pixels with a report that fits them, or a refusal; never another exception."""
    try:
        result = decode(EncodedImage(data), ImageLimits(max_pixels=4_000_000))
    except CritiqError as error:
        blamed, shown = error.field, error.message
    else:
        assert result.pixels.shape == (result.report.height, result.report.width, 3)
        return
    assert blamed == "image.encoded"
    assert shown.isascii()
    assert "object at" not in shown


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
@example(b"\xff\xd8\xff\xc0\0\x11\x08\0\x40\0\x40\3")
def test_any_bytes_at_all(data: bytes) -> None:
    survives(data)


@settings(max_examples=200, deadline=None)
@given(data=st.sampled_from(samples()), kept=st.sampled_from([12, 24, 40]), rest=st.binary(max_size=300))
def test_any_bytes_after_a_good_beginning(data: bytes, kept: int, rest: bytes) -> None:
    survives(data[:kept] + rest)


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.sampled_from(samples()), edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12))
def test_good_files_with_changed_bytes(data: bytes, edits: list[tuple[float, int]]) -> None:
    changed = bytearray(data)
    for place, value in edits:
        changed[min(int(place * len(changed)), len(changed) - 1)] = value
    survives(bytes(changed))


@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(max_examples=200, deadline=None)
@given(data=st.sampled_from(samples()), cut=st.tuples(st.floats(0, 1), st.floats(0, 1)), twice=st.booleans())
def test_good_files_with_a_part_missing_or_doubled(data: bytes, cut: tuple[float, float], twice: bool) -> None:
    start, end = sorted(int(place * len(data)) for place in cut)
    survives(data[:end] + data[start:] if twice else data[:start] + data[end:])
