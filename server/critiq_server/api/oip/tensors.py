"""Tensors of the Open Inference Protocol, whatever face they came through, and what is read from them.

Both faces bring an input as a :class:`Tensor`. Its values are bytes in the protocol's binary form, or a list: of JSON's
values, or of those that a protobuf message holds.
"""

from __future__ import annotations

import base64
import binascii
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from critiq.errors import CritiqError, InvalidArgument, TooLarge
from critiq_server.images.source import EncodedImage, ImageSource, RawImage
from critiq_server.wording import quoted

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
"""The protocol's name of each of numpy's dtypes."""

PICTURES = ("image", "pixels")
"""The inputs that bring pictures; a request has one of them."""

_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input as it was sent; nothing is checked yet."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: bytes | memoryview | Sequence[Any]


@dataclass(frozen=True, slots=True)
class Items:
    """What a request asks about, item by item; an item that cannot be read has the reason in its place.

    ``picture`` is the name of the input that the pictures came in (empty: there are none), ``images`` are as many as
    ``prompts``, and ``one_prompt`` says that one prompt was sent for all.
    """

    picture: str
    images: Sequence[ImageSource | CritiqError | None]
    prompts: Sequence[str | CritiqError]
    one_prompt: bool


def read_items(tensors: Sequence[Tensor], reads: frozenset[str], limit: int) -> Items:
    """The pictures and prompts in ``tensors``.

    Args:
        reads: which of ``image`` and ``prompt`` the model can use. A picture is always needed where it can; a prompt
            only where there is no picture.
        limit: items at the most.

    Raises:
        InvalidArgument: an input is missing, unknown, of another datatype or shape, or its data does not fit its shape.
        TooLarge: there are more than ``limit`` items.
    """
    inputs = _by_name(tensors, reads)
    pictures = [name for name in PICTURES if name in inputs]
    if len(pictures) > 1:
        raise InvalidArgument("send the pictures as image (files) or as pixels, not as both", field="inputs")
    picture = pictures[0] if pictures else ""
    needed = "image" if "image" in reads else "prompt"
    if needed == "image" and not picture:
        raise InvalidArgument(
            "there is no picture; send the input image (BYTES [N], files) or pixels (UINT8 [N, height, width, 3])",
            field="inputs",
        )
    if needed == "prompt" and "prompt" not in inputs:
        raise InvalidArgument("the input prompt (BYTES [N]) is missing", field="inputs")
    read = {"image": _files, "pixels": _pixels}
    images: Sequence[ImageSource | CritiqError | None] = read[picture](inputs[picture], limit) if picture else ()
    prompts = _prompts(inputs["prompt"], limit) if "prompt" in inputs else []
    if not picture:
        return Items("", [None] * len(prompts), prompts, one_prompt=False)
    if len(prompts) not in (0, 1, len(images)):
        raise InvalidArgument(
            f"there are {len(images)} pictures and {len(prompts)} prompts; send one for all, one each, or none",
            field="prompt",
        )
    if len(prompts) == len(images):
        return Items(picture, images, prompts, one_prompt=False)
    return Items(picture, images, (prompts or [""]) * len(images), one_prompt=True)


def encode(values: NDArray[np.generic]) -> bytes:
    """The binary form of an output: row-major, little-endian."""
    return np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()


def _by_name(tensors: Sequence[Tensor], reads: frozenset[str]) -> dict[str, Tensor]:
    known = [*(PICTURES if "image" in reads else ()), *(["prompt"] if "prompt" in reads else [])]
    inputs: dict[str, Tensor] = {}
    for tensor in tensors:
        if tensor.name not in known:
            raise InvalidArgument(
                f"there is no input {quoted(tensor.name)} here; there is {', '.join(known)}", field="inputs"
            )
        if tensor.name in inputs:
            raise InvalidArgument(f"the input {tensor.name!r} is there twice", field="inputs")
        inputs[tensor.name] = tensor
    return inputs


def _files(tensor: Tensor, limit: int) -> list[ImageSource | CritiqError | None]:
    found: list[ImageSource | CritiqError | None] = []
    for element in _elements(tensor, limit):
        try:
            data = element if isinstance(element, bytes) else base64.b64decode(element, validate=True)
            found.append(EncodedImage(data))
        except (binascii.Error, ValueError):
            found.append(InvalidArgument("it is not base64; JSON carries picture files as base64 text", field="image"))
    return found


def _prompts(tensor: Tensor, limit: int) -> list[str | CritiqError]:
    found: list[str | CritiqError] = []
    for element in _elements(tensor, limit):
        try:
            found.append(element.decode() if isinstance(element, bytes) else element)
        except UnicodeDecodeError as error:
            found.append(
                InvalidArgument(
                    f"it is not UTF-8 text (byte {error.object[error.start]:#04x} at {error.start})", field="prompt"
                )
            )
    return found


def _pixels(tensor: Tensor, limit: int) -> list[ImageSource | CritiqError | None]:
    _check_datatype(tensor, "UINT8")
    if len(tensor.shape) != 4 or min(tensor.shape) < 0:
        raise InvalidArgument(
            f"the shape {_shown(tensor.shape)} must be [N, height, width, 3]", field=f"{tensor.name}.shape"
        )
    count, shape = tensor.shape[0], tensor.shape[1:]
    _check_count(tensor.name, count, limit)
    data = _octets(tensor)
    size = prod(shape)
    if len(data) != count * size:
        raise InvalidArgument(
            f"there are {len(data):,} values; the shape {_shown(tensor.shape)} needs {count * size:,}",
            field=tensor.name,
        )
    return [RawImage(bytes(data[at * size : (at + 1) * size]), shape) for at in range(count)]


def _octets(tensor: Tensor) -> memoryview:
    """The values of a UINT8 tensor; lists may be nested as its shape is, or flat."""
    if isinstance(tensor.values, bytes | memoryview):
        return memoryview(tensor.values)
    values: Sequence[Any] = tensor.values
    for _ in tensor.shape[1:]:
        if values and all(isinstance(part, list) for part in values):
            values = list(chain.from_iterable(values))
    try:
        return memoryview(bytes(values))
    except (TypeError, ValueError) as error:
        raise InvalidArgument("values must be whole numbers in 0..255", field=tensor.name) from error


def _elements(tensor: Tensor, limit: int) -> Sequence[bytes | str]:
    """The elements of a BYTES tensor of shape ``[N]``; text where JSON brought it."""
    _check_datatype(tensor, "BYTES")
    if len(tensor.shape) != 1 or tensor.shape[0] < 0:
        raise InvalidArgument(f"the shape {_shown(tensor.shape)} must be [N]", field=f"{tensor.name}.shape")
    count = tensor.shape[0]
    _check_count(tensor.name, count, limit)
    if isinstance(tensor.values, bytes | memoryview):
        return _split(tensor.name, memoryview(tensor.values), count)
    values: Sequence[Any] = tensor.values
    if len(values) != count:
        raise InvalidArgument(f"there are {len(values)} elements; the shape says {count}", field=tensor.name)
    for at, value in enumerate(values):
        if not isinstance(value, bytes | str):
            raise InvalidArgument(f"the element is a {type(value).__name__}, not text", field=f"{tensor.name}[{at}]")
    return values


def _split(name: str, data: memoryview, count: int) -> list[bytes]:
    """``count`` elements, each its length (four bytes, little-endian) and so many bytes."""
    elements = []
    start = 0
    for at in range(count):
        if start + _LENGTH.size > len(data):
            raise InvalidArgument(
                f"the data ends after {at} of {count} elements; each is 4 bytes of length (little-endian), then bytes",
                field=name,
            )
        (length,) = _LENGTH.unpack_from(data, start)
        start += _LENGTH.size
        if length > len(data) - start:
            raise InvalidArgument(
                f"the element says that it has {length:,} bytes; {len(data) - start:,} are left", field=f"{name}[{at}]"
            )
        elements.append(bytes(data[start : start + length]))
        start += length
    if start != len(data):
        raise InvalidArgument(f"{len(data) - start:,} bytes are left after {count} elements", field=name)
    return elements


def _check_datatype(tensor: Tensor, due: str) -> None:
    if tensor.datatype != due:
        raise InvalidArgument(
            f"the datatype is {quoted(tensor.datatype)}; it must be {due}", field=f"{tensor.name}.datatype"
        )


def _check_count(name: str, count: int, limit: int) -> None:
    if count == 0:
        raise InvalidArgument("there is nothing in it; send at least one element", field=name)
    if count > limit:
        raise TooLarge(f"{count} elements in one request, the limit is {limit}; send several requests", field=name)


def _shown(shape: Sequence[int]) -> str:
    return f"{list(shape)!s:.80}"
