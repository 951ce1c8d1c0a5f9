"""Label files of one's own: a CSV table with a header."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from critiq_evaluation.errors import EvaluationError

_KNOWN: Mapping[str, Sequence[str]] = {
    "image": ("image", "name", "file", "img_path", "image_name"),
    "rating": ("mos", "rating", "MOS", "gt_score", "mos_quality"),
    "prompt": ("prompt",),
    "score": ("raw", "score"),
    "label": ("label", "accept", "accepted", "decision"),
}
"""Columns that are recognised, the first that is there counts."""


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
    """The rows of a CSV file, in its order.

    Args:
        needed: what each row must have: keys of the recognised columns.
        columns: the column for some of them, where it is not recognised by its name.
        optional: what a row may have.

    Raises:
        EvaluationError: the file cannot be read, is empty, or has no such column; the message lists the columns.
    """
    for what in columns:
        if what not in (*needed, *optional):
            raise EvaluationError(f"--column {what}={columns[what]}: what can be named is {', '.join(_KNOWN)}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = list(reader.fieldnames or [])
            found = {what: _column(path, header, what, columns) for what in needed}
            found |= {what: _column(path, header, what, columns, must=False) for what in optional}
            chosen = {what: column for what, column in found.items() if column}
            rows = [
                Row(f"{path}, line {reader.line_num}", {what: row[column] or "" for what, column in chosen.items()})
                for row in reader
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if not rows:
        raise EvaluationError(f"{path}: there is no row below the header")
    return rows


def column_options(entries: Sequence[str]) -> dict[str, str]:
    """``WHAT=COLUMN`` each. Raises :class:`EvaluationError`."""
    found = {}
    for entry in entries:
        what, equals, column = entry.partition("=")
        if not (what and equals and column):
            raise EvaluationError(f"--column {entry!r} is not of the form WHAT=COLUMN")
        found[what] = column
    return found


def _column(path: Path, header: Sequence[str], what: str, columns: Mapping[str, str], *, must: bool = True) -> str:
    told = columns.get(what)
    if told is not None:
        if told not in header:
            raise EvaluationError(f"{path}: there is no column {told!r}; there are {', '.join(header)}")
        return told
    for name in _KNOWN[what]:
        if name in header:
            return name
    if must:
        raise EvaluationError(
            f"{path}: no column is called {' or '.join(_KNOWN[what])}; there are {', '.join(header) or 'none'}. "
            f"Say which it is: --column {what}=COLUMN"
        )
    return ""
