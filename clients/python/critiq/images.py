"""Whatever a caller holds as a picture -> the ``Image`` message. Nothing is decoded that need not be.

Files, bytes and file objects travel as they are, so the server sees the embedded profile and orientation. PIL images
and arrays travel as raw pixels, or as PNG where raw pixels would lose something (alpha, a palette, 16 bits, a profile).
Torch tensors are recognised by their methods: torch is never imported.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from critiq.errors import InvalidArgument, TooLarge
from critiq.v1 import scoring_pb2

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MAX_MESSAGE_BYTES = 64 * 1024 * 1024
"""The largest message that the client sends or takes. The server may be set to less."""


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """A picture that the server fetches itself, if its settings allow it: ``https://``, and a host that they list."""

    url: str


ImageInput = Any
"""A path (``str`` or ``os.PathLike``), the bytes of a picture file, a binary file object, a ``PIL.Image.Image``, a
NumPy array or a torch tensor (or anything else with ``__array__``), or an :class:`ImageUrl`.

Arrays: ``[height, width]`` (grey), ``[height, width, channels]`` or ``[channels, height, width]``; uint8 0..255, or
float of any width 0..1. Channels: 1 or 3, and 4 (RGBA) for uint8. Where both ends could be the channels (shape
``[3, 640, 3]``), an array is read as ``[height, width, channels]`` and a torch tensor as ``[channels, height, width]``,
as each of them is by convention.
"""

_CHANNELS = (1, 3, 4)


def to_image(image: ImageInput, field: str = "image") -> scoring_pb2.Image:
    """The message for one picture.

    Raises:
        InvalidArgument: it is no picture, cannot be read, or has a shape or type that cannot travel; names ``field``.
        TooLarge: the file is larger than :data:`MAX_MESSAGE_BYTES`.
    """
    if isinstance(image, ImageUrl):
        return scoring_pb2.Image(url=_url(image, field))
    if isinstance(image, str | os.PathLike):
        return scoring_pb2.Image(encoded=_read_path(image, field))
    if isinstance(image, bytes | bytearray | memoryview):
        return scoring_pb2.Image(encoded=_checked(bytes(image), field))
    if _is_pil(image):
        return _from_pil(image, field)
    if is_array(image):
        return _from_array(image, field)
    if hasattr(image, "read"):
        return scoring_pb2.Image(encoded=_read_file_object(image, field))
    raise InvalidArgument(
        f"{type(image).__name__} is no picture: give a path, bytes, a file object, a PIL image, an array or a tensor",
        field=field,
    )


def split_pictures(pictures: Iterable[ImageInput], field: str) -> Iterator[ImageInput]:
    """The single pictures in a sequence, or in an array or tensor ``[count, ...]`` with four axes.

    Raises:
        InvalidArgument: ``pictures`` is one picture, or nothing that can be gone through.
    """
    single = isinstance(pictures, str | bytes | bytearray | memoryview | os.PathLike | ImageUrl) or _is_pil(pictures)
    if single or hasattr(pictures, "read"):
        raise InvalidArgument(f"one {type(pictures).__name__}, where a sequence of pictures is due", field=field)
    if is_array(pictures):
        shape = tuple(getattr(pictures, "shape", ()))
        if len(shape) != 4:
            raise InvalidArgument(
                f"an array of shape {list(shape)}; several pictures in one array have four axes", field=field
            )
    try:
        return iter(pictures)
    except TypeError:
        raise InvalidArgument(f"{type(pictures).__name__}, where a sequence of pictures is due", field=field) from None


def is_array(value: object) -> bool:
    return _is_tensor(value) or hasattr(value, "__array__")


def _is_tensor(value: object) -> bool:
    return all(hasattr(value, name) for name in ("detach", "cpu", "numpy"))


def _is_pil(value: object) -> bool:
    # Nobody can hold a PIL image without having imported PIL.
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def _url(image: ImageUrl, field: str) -> str:
    if not isinstance(image.url, str) or not image.url.isascii():
        raise InvalidArgument(f"{image.url!r:.80} is no URL in ASCII; percent-encode the rest", field=field)
    return image.url


def _read_path(path: str | os.PathLike[Any], field: str) -> bytes:
    name = os.fsdecode(path)
    if name.startswith(("http://", "https://", "data:")):
        raise InvalidArgument(
            f"{name[:80]!r} is a URL; fetch it and give its bytes, or have the server fetch critiq.ImageUrl(...)",
            field=field,
        )
    try:
        size = os.stat(name).st_size
        if size > MAX_MESSAGE_BYTES:
            raise TooLarge(f"{name!r} has {size} bytes; the limit is {MAX_MESSAGE_BYTES}", field=field)
        with open(name, "rb") as file:
            return _checked(file.read(), field, name)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InvalidArgument(f"cannot read {name!r}: {reason}", field=field) from error


def _read_file_object(file: Any, field: str) -> bytes:
    try:
        data = file.read(MAX_MESSAGE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read the file object: {error}", field=field) from error
    if not isinstance(data, bytes):
        raise InvalidArgument(f"the file object gives {type(data).__name__}; open it in binary mode", field=field)
    return _checked(data, field)


def _checked(data: bytes, field: str, name: str = "") -> bytes:
    if not data:
        raise InvalidArgument(f"{name!r} is empty" if name else "no bytes", field=field)
    if len(data) > MAX_MESSAGE_BYTES:
        raise TooLarge(f"more than {MAX_MESSAGE_BYTES} bytes", field=field)
    return data


def _from_pil(image: Image.Image, field: str) -> scoring_pb2.Image:
    from PIL import ImageOps

    try:
        # PIL holds pixels as the file has them: without this a path and its opened image would score differently.
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("CMYK", "YCbCr", "HSV", "LAB"):
            upright = _to_rgb(upright)
        if upright.mode == "RGB" and "icc_profile" not in upright.info and "transparency" not in upright.info:
            return _raw(upright.tobytes(), (upright.height, upright.width, 3))
        return scoring_pb2.Image(encoded=_png(upright))
    except (OSError, ValueError, SyntaxError) as error:
        raise InvalidArgument(f"PIL cannot give the pixels of this image: {error}", field=field) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    """PNG has no room for these modes, so the embedded profile is applied here."""
    from PIL import ImageCms

    profile = image.info.get("icc_profile")
    if not profile or image.mode != "CMYK":
        converted = image.convert("RGB")
    else:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        try:
            result = ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except ImageCms.PyCMSError as error:
            raise ValueError(f"its colour profile cannot be used: {error}") from error
        converted = result if result is not None else image.convert("RGB")
    converted.info.pop("icc_profile", None)
    return converted


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    # The lightest compression: the way is usually short and the caller waits.
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _from_array(value: Any, field: str) -> scoring_pb2.Image:
    import numpy as np

    array = _tensor_to_numpy(value, field) if _is_tensor(value) else np.asarray(value)
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or 0 in array.shape:
        hint = "; for several pictures use score_batch, score_stream or rank" if array.ndim == 4 else ""
        raise InvalidArgument(f"an array of shape {list(array.shape)} is no picture{hint}", field=field)
    channels_first = _channels_first(array.shape, prefer=_is_tensor(value), field=field)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise InvalidArgument(f"dtype {array.dtype}; pictures are uint8 0..255 or float 0..1", field=field)
    if array.nbytes > MAX_MESSAGE_BYTES:
        raise TooLarge(f"{array.nbytes} bytes of pixels; the limit is {MAX_MESSAGE_BYTES}", field=field)
    if array.shape[0 if channels_first else 2] == 4:
        return _from_rgba(array.transpose(1, 2, 0) if channels_first else array, field)
    if array.dtype == np.uint8:
        return _raw(array.tobytes(), array.shape, channels_first=channels_first)
    return _raw(array.astype("<f4").tobytes(), array.shape, channels_first=channels_first, float32=True)


def _tensor_to_numpy(tensor: Any, field: str) -> np.ndarray[Any, Any]:
    import numpy as np

    try:
        tensor = tensor.detach().cpu()
        if "bfloat16" in str(tensor.dtype):  # NumPy has no such type
            tensor = tensor.float()
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError, ValueError) as error:
        raise InvalidArgument(f"the tensor has no NumPy form: {error}", field=field) from error


def _channels_first(shape: Sequence[int], *, prefer: bool, field: str) -> bool:
    first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
    if not first and not last:
        raise InvalidArgument(
            f"an array of shape {list(shape)}: neither the first nor the last axis has 1, 3 or 4 channels", field=field
        )
    return prefer if first and last else first


def _from_rgba(array: np.ndarray[Any, Any], field: str) -> scoring_pb2.Image:
    import numpy as np
    from PIL import Image

    if array.dtype != np.uint8:
        raise InvalidArgument(f"four channels of {array.dtype}; alpha travels only with uint8", field=field)
    return scoring_pb2.Image(encoded=_png(Image.fromarray(np.ascontiguousarray(array), "RGBA")))


def _raw(
    data: bytes, shape: Sequence[int], *, channels_first: bool = False, float32: bool = False
) -> scoring_pb2.Image:
    raw = scoring_pb2.RawImage
    return scoring_pb2.Image(
        raw=raw(
            data=data,
            shape=shape,
            dtype=raw.DTYPE_FLOAT32 if float32 else raw.DTYPE_UINT8,
            layout=raw.LAYOUT_CHW if channels_first else raw.LAYOUT_HWC,
        )
    )
