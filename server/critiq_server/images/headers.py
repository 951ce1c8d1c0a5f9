"""What a picture file is and how large, read from its first bytes in some microseconds, before any decoder sees it.

Pillow would tell the same, but it allocates a WebP file's whole canvas to do so, and costs more than a small model's
share of the event loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from PIL import AvifImagePlugin, Image, features

from critiq.errors import InvalidArgument

FIELD = "image.encoded"

ACCEPTED = ("JPEG", "PNG", "WEBP") + (("AVIF",) if features.check("avif") else ())
"""Formats that are decoded, as Pillow calls them. AVIF only where Pillow was built with it."""

# Pillow would start a thread a core for each AVIF file, while the server decodes as many files as it has cores.
AvifImagePlugin.DEFAULT_MAX_THREADS = 1


@dataclass(frozen=True, slots=True)
class Header:
    """Format (``JPEG``, ``PNG``, ``WEBP``, ``AVIF``, ``RAW``) and size in pixels, before any orientation is applied."""

    format: str
    width: int
    height: int


def read_header(data: bytes) -> Header:
    """The header of a picture file.

    Raises ``InvalidArgument`` for a format that is not accepted, and for a header that is damaged.
    """
    kind = _recognise(data)
    if kind not in ACCEPTED:
        what = f"this is {kind}" if kind else "the bytes are no picture in a known format"
        raise InvalidArgument(f"{what}; accepted formats are {', '.join(ACCEPTED)}; convert the picture", field=FIELD)
    size = _SIZES[kind](data)
    if size is None or min(size) <= 0:
        raise InvalidArgument(
            f"the {kind} file is truncated or damaged (its header is unreadable); send the whole file", field=FIELD
        )
    return Header(kind, *size)


_MAGIC: tuple[tuple[int, bytes, str], ...] = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG\r\n\x1a\n", "PNG"),
    (0, b"GIF8", "a GIF file"),
    (0, b"II*\0", "a TIFF file"),
    (0, b"MM\0*", "a TIFF file"),
    (0, b"II+\0", "a TIFF file"),
    (0, b"BM", "a BMP file"),
    (0, b"\0\0\1\0", "an ICO file"),
    (0, b"8BPS", "a Photoshop file"),
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 file"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (0, b"\xff\x0a", "a JPEG XL file"),
    (0, b"qoif", "a QOI file"),
    (0, b"v/1\x01", "an OpenEXR file"),
    (0, b"#?RADIANCE", "a Radiance HDR file"),
    (0, b"DDS ", "a DDS file"),
    (0, b"SIMPLE  =", "a FITS file"),
    (0, b"%!PS", "a PostScript file"),
    (0, b"%PDF", "a PDF file"),
    (0, b"\x93NUMPY", "a NumPy array file (send arrays as raw pixels)"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (0, b"data:", "a data URL (send the decoded bytes)"),
    (0, b"/9j/", "base64 text (send the decoded bytes)"),
    (0, b"iVBORw0KGgo", "base64 text (send the decoded bytes)"),
    (0, b"UklGR", "base64 text (send the decoded bytes)"),
    (0, b"http://", "a URL (send the file that it points at)"),
    (0, b"https://", "a URL (send the file that it points at)"),
)


def _recognise(data: bytes) -> str:
    """One of Pillow's format names, or words for something else, or nothing."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[4:8] == b"ftyp":
        return _recognise_boxes(data)
    for offset, magic, name in _MAGIC:
        if data.startswith(magic, offset):
            return name
    text = data[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith(b"<svg") or (text.startswith(b"<?xml") and b"<svg" in text):
        return "an SVG file"
    if text.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    return "JSON text" if text.startswith(b'{"') else ""


def _recognise_boxes(data: bytes) -> str:
    """Files made of ISO base media boxes name their kind in the first box: a major brand, then compatible ones."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    major, brands = data[8:12], [data[at : at + 4] for at in range(16, end, 4)]
    if major in (b"avif", b"avis") or (major in (b"mif1", b"msf1") and {b"avif", b"avis"} & set(brands)):
        return "AVIF" if "AVIF" in ACCEPTED else "an AVIF file, which this server was built without"
    if major in (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1"):
        return "a HEIF file"
    return "a video or another file of ISO base media boxes"


Size = tuple[int, int]
"""``(width, height)``"""


def _png_size(data: bytes) -> Size | None:
    if data[12:16] != b"IHDR" or len(data) < 29:
        return None
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def _webp_size(data: bytes) -> Size | None:
    chunk = data[12:16]
    if chunk == b"VP8X" and len(data) >= 30:
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    if chunk == b"VP8L" and len(data) >= 25 and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if chunk == b"VP8 " and len(data) >= 30 and data[23:26] == b"\x9d\x01\x2a":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    return None


def _jpeg_size(data: bytes) -> Size | None:
    for marker, at in _jpeg_segments(data):
        if marker in _FRAMES:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
    return None


def jpeg_scans(data: bytes) -> int:
    """How often a JPEG file makes its decoder go over the picture (an upper bound).

    One for the usual file, which has all components in one sequential scan; else the number of scan headers, which
    entropy-coded data cannot contain.
    """
    frame, components = 0, 0
    for marker, at in _jpeg_segments(data):
        if marker in _FRAMES and at + 9 < len(data):
            frame, components = marker, data[at + 9]
        if marker == 0xDA and at + 4 < len(data):
            whole = frame in (0xC0, 0xC1) and data[at + 4] == components
            return 1 if whole else data.count(b"\xff\xda")
    return 0


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Marker and position of each segment up to the first scan."""
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # padding
            at += 1
            continue
        yield marker, at
        if marker in (0x00, 0xD8, 0xD9, 0xDA):
            return
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD7
        at += 2 if alone else 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))


def _avif_size(data: bytes) -> Size | None:
    """The boxes of AVIF nest too deeply for a few lines; its decoder parses them without decoding a pixel."""
    try:
        with Image.open(BytesIO(data), formats=("AVIF",)) as image:
            return image.size
    except Exception:  # whatever a decoder says about a stranger's bytes, they are no picture
        return None


_SIZES = {"JPEG": _jpeg_size, "PNG": _png_size, "WEBP": _webp_size, "AVIF": _avif_size}
