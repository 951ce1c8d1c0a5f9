"""Which column of a table holds what: said by the caller, or told by its usual names; and the scale of its values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from critiq_evaluation.datasets.collecting import as_number
from critiq_evaluation.datasets.tables import Row, Table
from critiq_evaluation.datasets.types import Scale
from critiq_evaluation.errors import EvaluationError

Columns = Mapping[str, str]
"""What the caller says: WHAT to the name of the column that holds it."""

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}
_HUNDRED = Scale(0.0, 100.0)


def split_of(row: Row, column: str = "split") -> str:
    """The official split of a row, under our names for the usual ones."""
    given = row.cells.get(column, "")
    return SPLITS.get(given.lower(), given)


_IMAGE_COLUMNS = (
    "image",
    "name",
    "image_name",
    "img",
    "filename",
    "file",
    "image name",
    "img_path",
    "dist_img",
    "picture",
)
_RATING_COLUMNS = ("mos", "rating", "quality", "score", "mos_quality", "mean", "moz", "gt_score", "mos_zscore")


def choose(table: Table, columns: Columns) -> dict[str, str]:
    """The columns of the ``image`` and of the ``rating``.

    Raises ``EvaluationError`` if they cannot be told; a rating is not needed where the caller names some of their own.
    """
    chosen = {
        "image": first(table, columns, "image", _IMAGE_COLUMNS),
        "rating": first(table, columns, "rating", _RATING_COLUMNS),
    }
    named = any(what not in ("image", "prompt", "split") and "." not in what for what in columns)
    for what, column in chosen.items():
        if not column and not (what == "rating" and named):
            known = ", ".join(table.columns)
            raise EvaluationError(f"{table.path}: which column holds the {what}? Say {what}=COLUMN; it has {known}")
    return chosen


def first(table: Table, columns: Columns, what: str, usual: Sequence[str]) -> str:
    """The column that holds ``what``: as the caller says, else the first of the usual names; empty if there is none."""
    if what in columns:
        table.need(columns[what])
        return columns[what]
    by_name = {column.lower(): column for column in table.columns}
    return next((by_name[name] for name in usual if name in by_name), "")


def sniffed(table: Table, column: str, columns: Columns, rating: str = "mos") -> Scale:
    """The scale of a column\'s numbers, as :func:`scale_of`."""
    values = [value for row in table.rows if (value := as_number(row.cells[column])) is not None]
    return scale_of(values, columns, rating)


def scale_of(values: list[float], columns: Columns, rating: str = "mos") -> Scale:
    """The scale that the caller states, else the smallest usual one that holds all values."""
    stated = columns.get(f"scale.{rating}", columns.get("scale", ""))
    if stated:
        low, dots, high = stated.partition("..")
        minimum, maximum = as_number(low), as_number(high)
        if not dots or minimum is None or maximum is None or minimum >= maximum:
            raise EvaluationError(f"the scale {stated!r} is not of the form MINIMUM..MAXIMUM")
        return Scale(minimum, maximum)
    if not values:
        return _HUNDRED
    for maximum in (1.0, 5.0, 10.0, 100.0):
        if min(values) >= 0 and max(values) <= maximum:
            return Scale(0.0, maximum)
    return Scale(min(values), max(values))
