"""Tables of scores and of decisions: columns are found by usual names, or as the caller says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from critiq_evaluation.datasets.tables import Table, read_table
from critiq_evaluation.errors import EvaluationError

_KNOWN: Mapping[str, str] = {
    "image": "image|name|file|img_path|image_name",
    "rating": "mos|rating|gt_score|mos_quality",
    "prompt": "prompt",
    "score": "raw|score",
    "label": "label|accept|accepted|decision",
}
"""The first that the table has counts."""


@dataclass(frozen=True)
class Row:
    """One row: the cells by what they are (``image``, ``rating``, ``score``, ``label``; ``prompt`` may be missing)."""

    place: str
    cells: Mapping[str, str]

    def number(self, what: str) -> float:
        """Raises :class:`EvaluationError` where the cell is no finite number; the message names file and line."""
        try:
            value = float(self.cells[what])
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise EvaluationError(f"{self.place}: the {what} is {self.cells[what]!r}; a finite number is due")
        return value


def read_rows(path: Path, needed: Sequence[str], columns: Mapping[str, str], optional: Sequence[str] = ()) -> list[Row]:
    """The rows of a table (CSV, XLSX, JSON, Parquet), in its order.

    Args:
        needed: what each row must have.
        columns: the column for some of them, where it is not recognised by its name.
        optional: what a row may have.

    Raises:
        EvaluationError: the file cannot be read, is empty, a row cannot be taken apart, or there is no such column; the
            message lists those that there are.
    """
    for what in columns:
        if what not in (*needed, *optional):
            raise EvaluationError(f"--column {what}={columns[what]}: what can be named is {', '.join(needed)}")
    table = read_table(path)
    if table.problems:
        raise EvaluationError(f"{table.problems[0].row}: {table.problems[0].message}")
    if not table.rows:
        raise EvaluationError(f"{path}: there is no row below the header")
    found = {what: _column(table, what, columns.get(what)) for what in needed}
    found |= {what: column for what in optional if (column := columns.get(what) or table.column(_KNOWN[what]))}
    return [Row(row.where, {what: row.cells.get(column, "") for what, column in found.items()}) for row in table.rows]


def column_options(entries: Sequence[str]) -> dict[str, str]:
    """``WHAT=COLUMN`` each. Raises :class:`EvaluationError`."""
    found = {}
    for entry in entries:
        what, equals, column = entry.partition("=")
        if not (what and equals and column):
            raise EvaluationError(f"--column {entry!r} is not of the form WHAT=COLUMN")
        found[what] = column
    return found


def _column(table: Table, what: str, told: str | None) -> str:
    column = table.column(told or _KNOWN[what])
    if column:
        return column
    if told:
        raise EvaluationError(f"{table.path}: there is no column {told!r}; there are {table.listing()}")
    raise EvaluationError(
        f"{table.path}: no column is called {_KNOWN[what].replace('|', ' or ')}; there are {table.listing()}. "
        f"Say which it is: --column {what}=COLUMN"
    )
