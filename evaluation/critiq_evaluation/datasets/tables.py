"""Label files -> rows of text: CSV and Excel with their columns, JSON as it is, MATLAB's arrays."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
from numpy.typing import NDArray
from openpyxl.utils.exceptions import InvalidFileException
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from critiq_evaluation.errors import EvaluationError

_ENCODINGS = ("utf-8-sig", "gb18030")
"""UTF-8 with or without a byte-order mark; then what Chinese editions of Excel write."""


@dataclass(frozen=True)
class Row:
    """One row: where it stands, and its cells as text by the column's name."""

    place: str
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """The rows of one file."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]

    def need(self, *columns: str) -> None:
        """Raises ``EvaluationError`` if one of ``columns`` is missing."""
        missing = [column for column in columns if column not in self.columns]
        if missing:
            raise EvaluationError(
                f"{self.path} has no column {', '.join(missing)}; it has {', '.join(self.columns) or 'none'}"
            )


def read_table(path: Path, header: Sequence[str] | None = None) -> Table:
    """The rows of a CSV or Excel file (its first sheet); empty rows are left out.

    Args:
        header: names of the columns of a file that has no line with them.

    Raises:
        EvaluationError: there is no such file, or it is no table; the message names the file and what was expected.
    """
    lines = read_lines(path)
    if header is None:
        if not lines:
            raise EvaluationError(f"{path} is empty; its first line should name the columns")
        (_, names), *lines = lines
        header = [name.strip() for name in names]
    while header and not header[-1]:
        header = header[:-1]
    repeated = sorted({name for name in header if list(header).count(name) > 1})
    if repeated:
        raise EvaluationError(f"{path} has several columns called {', '.join(map(repr, repeated))}")
    rows = []
    for number, cells in lines:
        if len(cells) < len(header) or any(cell.strip() for cell in cells[len(header) :]):
            raise EvaluationError(f"{path}, line {number}: {len(cells)} cells, but there are {len(header)} columns")
        rows.append(Row(f"{path.name}, line {number}", dict(zip(header, map(str.strip, cells), strict=False))))
    return Table(path, tuple(header), tuple(rows))


def read_lines(path: Path) -> list[tuple[int, list[str]]]:
    """The lines of a CSV or Excel file that are not empty, with their numbers from 1. Raises as :func:`read_table`."""
    lines = _excel(path) if path.suffix.lower() in (".xlsx", ".xlsm") else _csv(path)
    return [(number, cells) for number, cells in lines if any(cell.strip() for cell in cells)]


def read_json(path: Path) -> list[Mapping[str, Any]]:
    """The objects of a JSON list, or of a file with one JSON object a line.

    Raises ``EvaluationError`` if the file is neither.
    """
    text = _text(path)
    try:
        found = json.loads(text)
    except json.JSONDecodeError as whole:
        try:
            found = [json.loads(line) for line in text.splitlines() if line.strip()]
        except json.JSONDecodeError:
            raise EvaluationError(f"{path} is not JSON: {whole}") from None
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list) or not found or not all(isinstance(entry, dict) for entry in found):
        raise EvaluationError(f"{path} should hold a list of JSON objects")
    return found


def read_mat(path: Path, key: str) -> NDArray[np.float64]:
    """One array of a MATLAB file, flattened. Raises ``EvaluationError`` if it is not there."""
    try:
        arrays = loadmat(path)
    except FileNotFoundError:
        raise EvaluationError(f"{path} does not exist") from None
    except (MatReadError, ValueError, TypeError, NotImplementedError, OSError) as error:
        raise EvaluationError(f"{path} is not a readable MATLAB file: {error}") from error
    if key not in arrays:
        known = ", ".join(name for name in arrays if not name.startswith("__")) or "nothing"
        raise EvaluationError(f"{path} has no array {key!r}; it has {known}")
    return np.asarray(arrays[key], np.float64).ravel()


def _text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise EvaluationError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise EvaluationError(f"{path} is a directory; name the label file in it") from None
    for encoding in _ENCODINGS:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    raise EvaluationError(f"{path} is no text in UTF-8 or GB 18030")


def _csv(path: Path) -> list[tuple[int, list[str]]]:
    text = _text(path)
    if "\0" in text:
        raise EvaluationError(f"{path} is no CSV file: it holds zero bytes")
    first = text.partition("\n")[0]
    delimiter = max(",\t;", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        return [(reader.line_num, cells) for cells in reader]
    except csv.Error as error:
        raise EvaluationError(f"{path}, line {reader.line_num}: not CSV: {error}") from error


def _excel(path: Path) -> list[tuple[int, list[str]]]:
    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    except FileNotFoundError:
        raise EvaluationError(f"{path} does not exist") from None
    except (InvalidFileException, zipfile.BadZipFile, KeyError, ValueError, OSError) as error:
        raise EvaluationError(f"{path} is not a readable Excel file: {error}") from error
    try:
        rows = book.worksheets[0].iter_rows(values_only=True)
        lines = [(number, ["" if cell is None else str(cell) for cell in row]) for number, row in enumerate(rows, 1)]
    finally:
        book.close()
    width = max((len(cells) for _, cells in lines), default=0)
    return [(number, cells + [""] * (width - len(cells))) for number, cells in lines]
