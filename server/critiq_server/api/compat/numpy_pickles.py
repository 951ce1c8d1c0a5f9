"""What stands in for NumPy while a pickle is read: arrays of numbers or text become lists, nothing of NumPy is called.

The names are those that pickles of NumPy 1.26 and 2 hold, in protocols 2 to 5; ``_codecs.encode`` is how protocol 2
writes bytes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from critiq.errors import InvalidArgument, TooLarge

_FIELD = "body"
_LONGEST_ITEM = 64 * 2**10
"""Bytes of one element; a text of 16,384 characters."""


class StandIn:
    """Something that a pickle refers to and that is no data itself."""

    def set_state(self, state: tuple[Any, ...]) -> None:
        raise InvalidArgument("the pickle sets the state of what has none", field=_FIELD)


class Function(StandIn):
    """``called`` takes the arguments as the pickle has them and checks each."""

    def __init__(self, called: Callable[[tuple[Any, ...]], Any]) -> None:
        self.called = called


class DType(StandIn):
    """``dtype(code, align, copy)``, and its state ``(version, byte order, ...)``."""

    def __init__(self, code: str) -> None:
        self._code = code
        self._order = "|"

    def set_state(self, state: tuple[Any, ...]) -> None:
        order = state[1] if len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise InvalidArgument("the pickle has a NumPy type with an unknown byte order", field=_FIELD)
        self._order = order

    def numpy(self) -> np.dtype[Any]:
        return np.dtype(self._order.replace("|", "") + self._code)


class Array(StandIn):
    """An array: filled by ``_frombuffer`` at once, or by the state that follows ``_reconstruct``."""

    def __init__(self) -> None:
        self._dtype: DType | None = None
        self._data = b""
        self._shape: tuple[int, ...] = ()
        self._fortran = False
        self._plain: Any = None
        self.counted = False

    @property
    def dimensions(self) -> int:
        return len(self._shape)

    @property
    def count(self) -> int:
        return prod(self._shape)

    def set_state(self, state: tuple[Any, ...]) -> None:
        if len(state) != 5:
            raise _no_array()
        _, shape, dtype, fortran, data = state
        self.fill(data, dtype, shape, fortran is True)

    def fill(self, data: Any, dtype: Any, shape: Any, fortran: bool) -> None:
        if not isinstance(data, bytes) or not isinstance(dtype, DType) or self._dtype is not None:
            raise _no_array()
        if not isinstance(shape, tuple) or len(shape) > 4 or any(type(n) is not int or n < 0 for n in shape):
            raise _no_array()
        self._data, self._dtype, self._shape, self._fortran = data, dtype, shape, fortran

    def plain(self, most: int) -> Any:
        """Lists as deep as the array has dimensions; a number or text if it has none. Raises for over ``most``."""
        if self._dtype is None:
            raise _no_array()
        if self._plain is None:
            dtype = self._dtype.numpy()
            if self.count > most:
                raise TooLarge(f"an array has {self.count} elements; at most {most} are read", field=_FIELD)
            if self.count * dtype.itemsize != len(self._data):
                raise _no_array()
            flat = np.frombuffer(self._data, dtype) if self._data else np.empty(0, dtype)
            if dtype.kind == "U":
                _check_text(flat)
            self._plain = flat.reshape(self._shape, order="F" if self._fortran else "C").tolist()
        return self._plain


def _check_text(array: NDArray[np.str_]) -> None:
    """NumPy makes text of any four bytes, even those that are no character and that Python's functions do not bear."""
    codes = array.view(array.dtype.str[0] + "u4") if array.size else array.view(np.uint32)
    if codes.size and codes.max() > sys.maxunicode:
        raise InvalidArgument("the pickle has an array of text that is no Unicode", field=_FIELD)


def _no_array() -> InvalidArgument:
    return InvalidArgument("the pickle has a NumPy array or scalar that is incomplete", field=_FIELD)


def _dtype(arguments: tuple[Any, ...]) -> DType:
    code = arguments[0] if arguments else None
    if not isinstance(code, str) or not re.fullmatch(r"b1|[iu][1248]|f[248]|[US][1-9][0-9]{0,5}", code):
        raise InvalidArgument(
            f"the pickle has a NumPy array of type {str(code)[:20]!r}; numbers, bools and text (U, S) are read, "
            "objects never",
            field=_FIELD,
        )
    if np.dtype(code).itemsize > _LONGEST_ITEM:
        raise TooLarge(f"elements of type {code!r} have more than {_LONGEST_ITEM} bytes", field=_FIELD)
    return DType(code)


def _reconstruct(arguments: tuple[Any, ...]) -> Array:
    if len(arguments) != 3 or arguments[0] is not _NDARRAY:
        raise _no_array()
    return Array()


def _frombuffer(arguments: tuple[Any, ...]) -> Array:
    if len(arguments) != 4:
        raise _no_array()
    data, dtype, shape, order = arguments
    array = Array()
    array.fill(data, dtype, shape, order == "F")
    return array


def _scalar(arguments: tuple[Any, ...]) -> Any:
    if len(arguments) != 2:
        raise _no_array()
    array = Array()
    array.fill(arguments[1], arguments[0], (), False)
    return array.plain(1)


def _encode(arguments: tuple[Any, ...]) -> bytes:
    match arguments:
        case (str(text), "latin1" | "latin-1"):
            try:
                return text.encode("latin-1")
            except UnicodeEncodeError:
                pass
    raise InvalidArgument("the pickle calls _codecs.encode for anything but bytes", field=_FIELD)


def _bytes(arguments: tuple[Any, ...]) -> bytes:
    """How protocol 2 writes empty bytes, and protocols before 5 a bytearray."""
    match arguments:
        case ():
            return b""
        case (bytes(data),):
            return data
    raise InvalidArgument("the pickle calls bytes or bytearray for anything but bytes", field=_FIELD)


def _refused(arguments: tuple[Any, ...]) -> Any:
    raise _no_array()


_NDARRAY = Function(_refused)
"""Only ever an argument of ``_reconstruct``."""

STAND_INS: Mapping[str, StandIn] = {
    "_codecs.encode": Function(_encode),
    "__builtin__.bytes": Function(_bytes),
    "__builtin__.bytearray": Function(_bytes),
    "builtins.bytearray": Function(_bytes),
    "numpy.ndarray": _NDARRAY,
    "numpy.dtype": Function(_dtype),
    **{
        f"numpy.{core}.{name}": function
        for core in ("core", "_core")
        for name, function in (
            ("multiarray._reconstruct", Function(_reconstruct)),
            ("multiarray.scalar", Function(_scalar)),
            ("numeric._frombuffer", Function(_frombuffer)),
        )
    },
}
