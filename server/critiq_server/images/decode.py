"""A caller's picture -> RGB pixels. Safe on anybody's bytes: the header is judged first, and only four decoders run.

Formats that are not accepted never reach a decoder. Where a file's parts disagree (the size in its outer header and in
its inner one, say) the limits are checked again on what the decoder makes of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from critiq.errors import CritiqError, InvalidArgument, TooLarge
from critiq.types import ImageReport
from critiq_server.images.colour import Colour, Converted, to_rgb
from critiq_server.images.headers import FIELD, Header, jpeg_scans, read_header
from critiq_server.images.limits import ImageLimits
from critiq_server.images.raw import decode_raw, raw_header
from critiq_server.images.source import Decoded, EncodedImage, ImageSource, Pixels, RawImage

WHITE: Colour = (255, 255, 255)
MAX_SCANS = 32
"""Passes over the picture that a JPEG file may ask for, at the largest accepted size. Encoders make about ten."""

_ORIENTATION = 0x0112  # EXIF
_PNG_END = b"IEND\xae\x42\x60\x82"  # the last chunk is empty, so its checksum is always the same


def inspect(source: ImageSource, limits: ImageLimits) -> Header:
    """Format and size of a picture, without decoding it (some microseconds; AVIF some tens).

    Raises ``InvalidArgument`` for a format that is not accepted, a damaged header, or a raw tensor whose shape, type,
    layout or byte count is wrong; ``TooLarge`` beyond ``limits``. ``field`` names the part of the request.
    """
    if isinstance(source, RawImage):
        return raw_header(source, limits)
    limits.check_bytes(len(source.data), FIELD)
    header = read_header(source.data)
    limits.check_size(header.width, header.height, FIELD)
    return header


def decode(source: ImageSource, limits: ImageLimits, background: Colour = WHITE) -> Decoded:
    """Pixels of a picture as a person sees it, with a report of what was done to get them.

    RGB uint8 ``[height, width, 3]``, C-contiguous, possibly read-only: upright, in sRGB, transparent parts composited
    onto ``background``, first frame only, 8 bits a sample (16-bit grey rounded; of 16-bit colour the high bytes, which
    is all that Pillow reads). Raises what :func:`inspect` raises, and ``InvalidArgument`` for a file that is truncated
    or damaged.
    """
    header = inspect(source, limits)
    if isinstance(source, RawImage):
        return decode_raw(source, limits)
    try:
        return _decode_file(source, header, limits, background)
    except (CritiqError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooLarge(f"the {header.format} file unpacks to too many pixels", field=FIELD) from error
    except Exception as error:  # decoders fail on a stranger's bytes in every way there is
        unknown = isinstance(error, UnidentifiedImageError)  # whose message shows an address
        reason = "its header is unreadable" if unknown else ascii(str(error))[1:-1][:120]
        raise InvalidArgument(
            f"the {header.format} file is truncated or damaged ({reason or type(error).__name__}); send the whole file",
            field=FIELD,
        ) from error


def _decode_file(source: EncodedImage, header: Header, limits: ImageLimits, background: Colour) -> Decoded:
    png = _PngDetails.read(source.data) if header.format == "PNG" else _PngDetails()
    # Pillow's copy of the picture is gone before another is made to turn it.
    converted, orientation, frames = _load(source, header, limits, background, png)
    pixels = _upright(converted.pixels, orientation)
    report = ImageReport(
        header.format,
        width=pixels.shape[1],
        height=pixels.shape[0],
        orientation_applied=orientation != 1,
        alpha_flattened=converted.alpha_flattened,
        depth_scaled=png.depth == 16,
        colour_converted=converted.colour_converted,
        first_frame_only=frames > 1,
    )
    return Decoded(pixels, report)


def _load(
    source: EncodedImage, header: Header, limits: ImageLimits, background: Colour, png: _PngDetails
) -> tuple[Converted, int, int]:
    """RGB pixels as they lie in the file, EXIF orientation, number of frames."""
    with Image.open(BytesIO(source.data), formats=(header.format,)) as image:
        limits.check_size(*image.size, FIELD)
        if header.format == "JPEG":
            _check_scans(image, source.data, limits)
        frames = getattr(image, "n_frames", 1)
        image.load()
        key = png.transparent(image)
        return to_rgb(image, background, key), _orientation(image), frames


@dataclass(frozen=True, slots=True)
class _PngDetails:
    """What Pillow does not tell of a PNG file once it is loaded."""

    depth: int = 8
    """Bits a sample."""

    @classmethod
    def read(cls, data: bytes) -> _PngDetails:
        # Pillow is content with all pixels; a file without its end has lost something all the same.
        if data.rfind(_PNG_END) < 0:
            raise InvalidArgument("the PNG file is truncated (it has no end); send the whole file", field=FIELD)
        return cls(depth=data[24])

    def transparent(self, image: Image.Image) -> int | Colour | None:
        """The colour that the file declares transparent, in ``image``'s levels, taken out of ``image.info``.

        The file has it in its own depth, Pillow's pixels have theirs: 16-bit colour keeps the high bytes, and grey of
        2 or 4 bits is spread over 0..255.
        """
        if image.mode not in ("1", "L", "I;16", "RGB"):
            return None
        key = image.info.pop("transparency", None)
        if isinstance(key, tuple) and len(key) == 3:
            shift = 8 if self.depth == 16 else 0
            return key[0] >> shift, key[1] >> shift, key[2] >> shift
        if isinstance(key, int):
            return key * (255 // (2**self.depth - 1)) if image.mode == "L" else key
        return None


def _check_scans(image: Image.Image, data: bytes, limits: ImageLimits) -> None:
    """A file of few bytes may tell its decoder to go over a large picture thousands of times."""
    scans = jpeg_scans(data)
    if scans * image.width * image.height > MAX_SCANS * limits.max_pixels:
        raise TooLarge(
            f"the JPEG file asks for {scans:,} passes over {image.width} x {image.height} pixels; "
            "save it again, without progressive scans",
            field=FIELD,
        )


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1..8; 1 (upright) where there is none or it makes no sense."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a picture is not refused for the notes in its margin
        return 1
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """``pixels`` turned and mirrored as EXIF orientation 1..8 asks (TIFF 6.0, tag 274)."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)
