"""``--output``: rows that survive an interruption, and the file that they end in.

Each row goes at once to a journal beside the output (``scores.csv.part.jsonl``). When all is done the output is written
in one piece and the journal removed. The next run reads both and leaves out what they hold.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from critiq.cli.exits import UsageError
from critiq.types import ItemResult

Row = dict[str, Any]

_FIRST_COLUMNS = ("file", "prompt", "model", "model_version")
_LAST_COLUMNS = ("format", "width", "height", "prompt_truncated", "error")
_VALUES = ("raw", "calibrated", "percentile")


def row_of(file: str, prompt: str, result: ItemResult) -> Row:
    """One line of the output; what is unknown is left out."""
    row: Row = {"file": file, "prompt": prompt}
    if result.result is None:
        error = result.error
        row["error"] = f"{error.code}: {error}" if error is not None else "INTERNAL: no outcome"
        return row
    for score in result.result.scores:
        row |= {"model": score.model, "model_version": score.model_version}
        row |= {f"{score.dimension}_{value}": getattr(score, value) for value in _VALUES}
    image = result.result.image
    row |= {"format": image.format, "width": image.width, "height": image.height}
    if result.result.prompt is not None:
        row["prompt_truncated"] = result.result.prompt.truncated
    return row


class Ledger:
    """The rows of one output file.

    Raises:
        UsageError: a suffix or directory that cannot be written to, or an output that cannot be read back.
    """

    def __init__(self, output: Path) -> None:
        self._output = output
        self._journal_path = output.with_name(f"{output.name}.part.jsonl")
        self._form = _form(output)
        if not output.parent.is_dir():
            raise UsageError(f"no such directory: {output.parent}")
        self._rows: dict[str, Row] = {}
        if output.exists():
            self._keep(_read_back(output, self._form[0]))
        self._keep(_read_journal(self._journal_path))
        self._journal: TextIO | None = None

    def holds(self, file: str, prompt: str, model: str, version: str, dimensions: Sequence[str]) -> bool:
        """Whether this very question has been answered. Failures have not."""
        row = self._rows.get(file)
        if row is None or row.get("error"):
            return False
        asked = {"prompt": prompt, "model": model, "model_version": version}
        same = all((row.get(column) or "") == value for column, value in asked.items())
        return same and all(row.get(f"{dimension}_raw") not in (None, "") for dimension in dimensions)

    def add(self, row: Row) -> None:
        self._rows[row["file"]] = row
        if self._journal is None:
            self._journal = _open_journal(self._journal_path)
        self._journal.write(json.dumps(row, ensure_ascii=False) + "\n")
        # To the operating system: a killed process loses nothing. A crash of the machine may cost the last seconds.
        self._journal.flush()

    def finish(self, order: Iterable[str]) -> None:
        """Writes the output: rows of earlier runs about other files first, then ``order``."""
        order = list(order)
        asked = set(order)
        names = [name for name in self._rows if name not in asked] + [name for name in order if name in self._rows]
        rows = [self._rows[name] for name in names]
        temporary = self._output.with_name(f".{self._output.name}.tmp")
        self._form[1](temporary, _columns(rows), rows)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(self._output)
        self.close()
        self._journal_path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._journal is not None:
            self._journal.close()
            self._journal = None

    def _keep(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self._rows[row["file"]] = row


_Reader = Callable[[Path], list[Row]]
_Writer = Callable[[Path, list[str], list[Row]], None]


def _form(output: Path) -> tuple[_Reader, _Writer]:
    forms: dict[str, tuple[_Reader, _Writer]] = {
        ".csv": (_read_csv, _write_csv),
        ".jsonl": (_read_jsonl, _write_jsonl),
        ".parquet": (_read_parquet, _write_parquet),
    }
    form = forms.get(output.suffix.lower())
    if form is None:
        raise UsageError(f"--output {output}: the name must end in {', '.join(forms)}")
    if output.suffix.lower() == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise UsageError("Parquet needs pyarrow: pip install 'critiq[parquet]'")
    return form


def _read_back(output: Path, reader: _Reader) -> list[Row]:
    try:
        rows = reader(output)
    except (OSError, ValueError, csv.Error) as error:
        raise UsageError(
            f"{output} exists and cannot be read ({error}); move it away or choose another name"
        ) from error
    if not all(isinstance(row, dict) and isinstance(row.get("file"), str) for row in rows):
        raise UsageError(f"{output} exists and is not ours (it has no column `file`); choose another name")
    return rows


def _read_journal(path: Path) -> list[Row]:
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue  # the line that an interruption cut off
        if isinstance(row, dict) and isinstance(row.get("file"), str):
            rows.append(row)
    return rows


def _open_journal(path: Path) -> TextIO:
    torn = path.exists() and not path.read_bytes().endswith(b"\n")
    journal = path.open("a", encoding="utf-8", newline="\n")
    if torn:
        journal.write("\n")
    return journal


def _columns(rows: Iterable[Row]) -> list[str]:
    seen = dict.fromkeys(column for row in rows for column in row)
    middle = [column for column in seen if column not in _FIRST_COLUMNS and column not in _LAST_COLUMNS]
    return [*_FIRST_COLUMNS, *middle, *_LAST_COLUMNS]


def _read_csv(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _write_csv(path: Path, columns: list[str], rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def _read_jsonl(path: Path) -> list[Row]:
    with path.open(encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def _write_jsonl(path: Path, columns: list[str], rows: list[Row]) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            ordered = {column: row[column] for column in columns if row.get(column) is not None}
            file.write(json.dumps(ordered, ensure_ascii=False) + "\n")


def _read_parquet(path: Path) -> list[Row]:
    import pyarrow.parquet

    rows: list[Row] = pyarrow.parquet.read_table(path).to_pylist()
    return rows


def _write_parquet(path: Path, columns: list[str], rows: list[Row]) -> None:
    import pyarrow
    import pyarrow.parquet

    kinds = {"width": pyarrow.int32(), "height": pyarrow.int32(), "prompt_truncated": pyarrow.bool_()}
    kinds |= {column: pyarrow.string() for column in (*_FIRST_COLUMNS, "format", "error")}
    schema = pyarrow.schema([(column, kinds.get(column, pyarrow.float64())) for column in columns])
    table = pyarrow.Table.from_pylist([{column: row.get(column) for column in columns} for row in rows], schema)
    pyarrow.parquet.write_table(table, path)
