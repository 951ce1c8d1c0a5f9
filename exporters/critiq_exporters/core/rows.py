"""Arrays with one row a picture, also where pictures of different sizes give rows of different shapes.

Rows of one shape lie in an ordinary array. Rows of several shapes lie in an array of type ``object`` whose entries are
the rows; it can be indexed like the other, but must be taken apart by shape before anything computes with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[Any]


def as_rows(items: Sequence[NDArray[Any]]) -> Rows:
    """``items`` as rows. Of one shape they are copied into a new array."""
    if len({item.shape for item in items}) == 1:
        return np.stack(items)
    rows = np.empty(len(items), object)
    for number, item in enumerate(items):
        rows[number] = item
    return rows


def take(rows: Rows, numbers: NDArray[np.intp]) -> NDArray[Any]:
    """The rows with these numbers, which must have one shape, as an ordinary array."""
    taken: NDArray[Any] = rows[numbers]
    return np.stack(list(taken)) if rows.dtype == object else taken


def alike(arrays: Mapping[str, Rows]) -> list[NDArray[np.intp]]:
    """Numbers of the rows that can be computed together, because no array has them in different shapes."""
    count = len(next(iter(arrays.values())))
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for number in range(count):
        groups.setdefault(tuple(rows[number].shape for rows in arrays.values()), []).append(number)
    return [np.array(group) for group in groups.values()]
