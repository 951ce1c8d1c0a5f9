"""Features as bytes, for stores outside this process: the same bytes for the same features on every machine.

A record is a header and the arrays' data. The header carries the format's version, a checksum, and each array's name,
dtype and shape; numbers are little-endian, arrays stand in the order of their names. Nothing is lost: a float32 array
whose values all fit bfloat16 or float16 exactly is stored in two bytes a value and comes back as the float32 array it
was. What a stage rounds to half precision, as LMM stages do, so takes half the room.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from math import prod
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

Features = Mapping[str, NDArray[np.generic]]
"""A stage's outputs for one item, by output name, without the batch axis."""

VERSION = 1

_HEAD = struct.Struct("<2sBBI")
"""Magic, version, number of arrays, CRC-32 of all that follows, begun with that number."""
_MAGIC = b"cF"
_ARRAY = struct.Struct("<BBB")
"""Dtype, how it is stored, number of dimensions; after the name."""

_DTYPES: tuple[str, ...] = ("<f4", "<f2", "<f8", "<i8", "<i4", "<i2", "|i1", "<u8", "<u4", "<u2", "|u1", "|b1")
"""A dtype's code is its place here; places are never taken away."""
_CODES = {np.dtype(name): code for code, name in enumerate(_DTYPES)}
_FLOAT32 = 0
_AS_IS, _AS_FLOAT16, _AS_BFLOAT16 = 0, 1, 2
_ITEM_BYTES = {_AS_FLOAT16: 2, _AS_BFLOAT16: 2}


class RecordError(ValueError):
    """Features that cannot become a record, or bytes that are no intact record; the message says why."""


def encode(features: Features) -> bytes:
    """A record of ``features``.

    Raises:
        RecordError: a dtype other than bool, integers and float16/32/64; more than 255 arrays, dimensions, or bytes of
            a name.
    """
    headers, blocks = [], []
    for name in sorted(features):
        array = np.asarray(features[name])
        code = _CODES.get(array.dtype.newbyteorder("<"))
        label = name.encode()
        if code is None:
            raise RecordError(f"{name!r} has the dtype {array.dtype}; stores hold {', '.join(map(str, _CODES))}")
        if max(len(label), array.ndim, len(features)) > 255:
            raise RecordError(f"{name[:40]!r}: names, dimensions and arrays are limited to 255")
        stored, block = _stored(array, code)
        headers.append(bytes([len(label)]) + label + _ARRAY.pack(code, stored, array.ndim))
        headers.append(struct.pack(f"<{array.ndim}I", *array.shape))
        blocks.append(block)
    body = b"".join(headers + blocks)
    return _HEAD.pack(_MAGIC, VERSION, len(features), crc32(body, len(features))) + body


def decode(record: bytes | memoryview) -> dict[str, NDArray[np.generic]]:
    """The features in ``record``: arrays of their own, which do not keep the record alive.

    Raises:
        RecordError: the record is damaged, or of another version.
    """
    body = check(record)
    arrays: dict[str, NDArray[np.generic]] = {}
    try:
        shapes, at = [], 0
        for _ in range(record[3]):
            name, code, stored, shape, at = _array_header(body, at)
            shapes.append((name, code, stored, shape))
        for name, code, stored, shape in shapes:
            arrays[name], at = _array(body, at, code, stored, shape)
    except (struct.error, ValueError, IndexError, KeyError) as error:  # a correct checksum over a wrong header
        raise RecordError(f"the record's header makes no sense ({error})") from error
    if at != len(body):
        raise RecordError(f"the record has {len(body) - at} bytes too many")
    return arrays


def check(record: bytes | memoryview) -> memoryview:
    """What follows a record's fixed head, its checksum proven; raises as :func:`decode`."""
    if len(record) < _HEAD.size:
        raise RecordError(f"the record is cut short: {len(record)} bytes")
    magic, version, count, checksum = _HEAD.unpack_from(record)
    if magic != _MAGIC:
        raise RecordError(f"this is no record of features (it begins with {bytes(record[:4])!r})")
    if version != VERSION:
        raise RecordError(f"the record has format {version}, this program reads format {VERSION}")
    body = memoryview(record)[_HEAD.size :]
    if crc32(body, count) != checksum:
        raise RecordError("the record is damaged: its checksum is wrong")
    return body


def _stored(array: NDArray[np.generic], code: int) -> tuple[int, bytes]:
    """How to store ``array``, and its bytes: two bytes a value where that loses nothing."""
    if code != _FLOAT32:
        return _AS_IS, array.astype(_DTYPES[code], copy=False).tobytes()
    bits = np.asarray(array, "<f4", order="C").view("<u4")
    if not (bits & 0xFFFF).any():
        return _AS_BFLOAT16, (bits >> 16).astype("<u2").tobytes()
    with np.errstate(over="ignore"):
        half = array.astype("<f2")
    # As bits: -0.0 must stay negative, and NaN is not equal to itself.
    if np.array_equal(half.astype("<f4").view("<u4"), bits):
        return _AS_FLOAT16, half.tobytes()
    return _AS_IS, bits.tobytes()


def _array_header(body: memoryview, at: int) -> tuple[str, int, int, tuple[int, ...], int]:
    end = at + 1 + body[at]
    name = str(body[at + 1 : end], "utf-8")
    code, stored, dimensions = _ARRAY.unpack_from(body, end)
    if stored not in (_AS_IS, _AS_FLOAT16, _AS_BFLOAT16):
        raise ValueError(f"way of storing {stored}")
    shape = struct.unpack_from(f"<{dimensions}I", body, end + _ARRAY.size)
    return name, code, stored, shape, end + _ARRAY.size + 4 * dimensions


def _array(
    body: memoryview, at: int, code: int, stored: int, shape: tuple[int, ...]
) -> tuple[NDArray[np.generic], int]:
    dtype = np.dtype(_DTYPES[code])
    count = prod(shape)
    size = count * _ITEM_BYTES.get(stored, dtype.itemsize)
    if at + size > len(body):
        raise ValueError(f"{size} bytes of data are announced, {len(body) - at} are there")
    block = body[at : at + size]
    array: NDArray[np.generic]
    if stored == _AS_BFLOAT16:
        array = (np.frombuffer(block, "<u2").astype("<u4") << 16).view("<f4")
    elif stored == _AS_FLOAT16:
        array = np.frombuffer(block, "<f2").astype("<f4")
    else:
        array = np.frombuffer(block, dtype).copy()
    return array.reshape(shape), at + size
