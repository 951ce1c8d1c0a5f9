"""Label files as tables of text: CSV, XLSX, JSON, JSON lines, Parquet. Rows know where they stood."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from critiq_evaluation.datasets.types import Problem
from critiq_evaluation.errors import EvaluationError

UTF8 = ("utf-8-sig",)
GBK = ("gb18030",)
"""For files whose authors saved them in GBK, which GB 18030 contains; short texts of it can pass for UTF-8."""
_SHOWN = 12


@dataclass(frozen=True)
class Row:
    """``where`` is the file and line; ``cells`` are stripped of blanks at their ends."""

    where: str
    cells: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """``problems`` are rows that could not be taken apart, which are not in ``rows``."""

    path: Path
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    problems: tuple[Problem, ...] = ()

    def column(self, names: str) -> str:
        """The first of ``NAME|NAME|...`` that the table has, whatever its case; empty if it has none."""
        if names in self.columns:
            return names
        known = {column.lower(): column for column in self.columns}
        return next((known[name.lower()] for name in names.split("|") if name.lower() in known), "")

    def listing(self) -> str:
        """The columns, for messages."""
        shown = ", ".join(self.columns[:_SHOWN])
        return shown + (f" and {len(self.columns) - _SHOWN} more" if len(self.columns) > _SHOWN else "")


def read_table(path: Path, *, encodings: Sequence[str] = UTF8, header: bool = True) -> Table:
    """Reads a label file by the ending of its name: .xlsx, .json, .jsonl, .parquet; all others are CSV.

    Args:
        encodings: of CSV and JSON, in the order in which they are tried; a byte-order mark decides.
        header: whether the first row has the names of the columns; else they are called 1, 2, 3, ...

    Raises:
        EvaluationError: the file cannot be read or is not what its name says; the message has the line, where known.
    """
    ending = path.suffix.lower()
    if not path.is_file():
        raise EvaluationError(f"{path} is {'a directory' if path.is_dir() else 'not there'}; expected a label file")
    try:
        if ending in (".xlsx", ".xlsm"):
            return _from_lines(path, _xlsx(path), header, "row")
        if ending == ".parquet":
            return _parquet(path)
        text = _decode(path, path.read_bytes(), encodings)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from error
    if ending == ".json":
        return _objects(path, _json(path, text))
    if ending in (".jsonl", ".ndjson"):
        return _objects(path, _json_lines(path, text))
    return _from_lines(path, _csv(path, text), header, "line")


def read_objects(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The objects of a JSON or JSON-lines file with their place, for forms whose cells are lists.

    Raises:
        EvaluationError: as :func:`read_table`.
    """
    try:
        text = _decode(path, path.read_bytes(), UTF8)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be read: {error.strerror or error}") from error
    lines = path.suffix.lower() in (".jsonl", ".ndjson")
    return list(_json_lines(path, text) if lines else _json(path, text))


def _decode(path: Path, data: bytes, encodings: Sequence[str]) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        encodings = ("utf-16",)
    elif data[:3] == b"\xef\xbb\xbf":
        encodings = UTF8
    for encoding in encodings:
        try:
            return data.decode(encoding)
        except UnicodeDecodeError as error:
            line = data[: error.start].count(b"\n") + 1
            reason = f"{path} line {line}: byte 0x{data[error.start]:02x} is not {encoding.removesuffix('-sig')} text"
    raise EvaluationError(f"{reason}; expected a text file in UTF-8 (or an .xlsx with that ending)")


def _csv(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    first = text.partition("\n")[0]
    delimiter = next((mark for mark in (",", "\t", ";") if mark in first), ",")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    line = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise EvaluationError(f"{path} line {line}: not CSV: {error}; a quote that is not closed?") from error
        yield line, cells
        line = reader.line_num + 1


def _xlsx(path: Path) -> Iterator[tuple[int, list[str]]]:
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        rows = [["" if cell is None else str(cell) for cell in row] for row in book.worksheets[0].values]
        book.close()
    except (zipfile.BadZipFile, KeyError, ValueError, IndexError, SyntaxError) as error:
        raise EvaluationError(f"{path} is not an .xlsx workbook: {error}") from error
    return iter(list(enumerate(rows, 1)))


def _parquet(path: Path) -> Table:
    import pandas

    try:
        frame = pandas.read_parquet(path)
    except ImportError as error:
        raise EvaluationError(f"{path}: Parquet needs pip install 'critiq[parquet]'") from error
    except (ValueError, OSError) as error:
        raise EvaluationError(f"{path} is not a Parquet file: {error}") from error
    kept = frame[[column for column in frame.columns if not _holds_bytes(frame[column])]]
    return _objects(path, ((f"{path.name} row {i}", _named(row)) for i, row in enumerate(kept.to_dict("records"), 1)))


def _named(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


def _holds_bytes(column: Any) -> bool:
    return len(column) > 0 and isinstance(column.iloc[0], bytes | dict)


def _from_lines(path: Path, lines: Iterable[tuple[int, list[str]]], header: bool, unit: str) -> Table:
    filled = [(number, [cell.strip() for cell in cells]) for number, cells in lines]
    filled = [(number, cells) for number, cells in filled if any(cells)]
    if not filled:
        raise EvaluationError(f"{path} is empty; expected a header and a row for each picture")
    columns = filled[0][1] if header else [str(i + 1) for i in range(len(filled[0][1]))]
    while columns and not columns[-1]:
        columns = columns[:-1]
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise EvaluationError(f"{path} {unit} {filled[0][0]}: the header has the column {twice[0]!r} more than once")
    rows, problems = [], []
    for number, cells in filled[1:] if header else filled:
        where = f"{path.name} {unit} {number}"
        if len(cells) < len(columns) or any(cells[len(columns) :]):
            message = f"{len(cells)} cells where the header has {len(columns)} columns; the row is left out"
            problems.append(Problem(where, message))
            continue
        rows.append(Row(where, {name: cell for name, cell in zip(columns, cells, strict=False) if name}))
    return Table(path, tuple(column for column in columns if column), tuple(rows), tuple(problems))


def _json(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise EvaluationError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, list) or not found:
        raise EvaluationError(f"{path}: expected a list of objects, one for each picture, found {_kind(found)}")
    for index, entry in enumerate(found, 1):
        yield f"{path.name} entry {index}", _checked(path, f"entry {index}", entry)


def _json_lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                entry = json.loads(line)
            except ValueError as error:
                raise EvaluationError(f"{path} line {number}: not JSON: {error}") from error
            yield f"{path.name} line {number}", _checked(path, f"line {number}", entry)


def _checked(path: Path, place: str, entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict):
        raise EvaluationError(f"{path} {place}: expected an object, found {_kind(entry)}")
    return entry


def _objects(path: Path, entries: Iterable[tuple[str, Mapping[str, Any]]]) -> Table:
    found = list(entries)
    if not found:
        raise EvaluationError(f"{path} is empty; expected an object for each picture")
    columns = tuple(dict.fromkeys(str(name) for _, entry in found for name in entry))
    rows = (Row(where, {name: _text(entry.get(name)) for name in columns}) for where, entry in found)
    return Table(path, columns, tuple(rows))


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _kind(value: Any) -> str:
    if value == []:
        return "an empty list"
    return "an object" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)[:40]
