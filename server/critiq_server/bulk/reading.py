"""Reads the rows of a unit: files of a folder and pointers in tables some ahead, everything in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from critiq.errors import InvalidArgument
from critiq_server.bulk import tables, tars
from critiq_server.bulk.inputs import Columns
from critiq_server.bulk.prompts import prompt_of_file
from critiq_server.bulk.rows import Image, PendingRow, Row, read_picture
from critiq_server.bulk.storage import Place, place
from critiq_server.bulk.units import Unit
from critiq_server.images.headers import FIELD
from critiq_server.images.limits import ImageLimits

_FILES_AHEAD = 16
"""Files that are read at once: an object store answers each after tens of milliseconds."""


def read_rows(unit: Unit, columns: Columns, limits: ImageLimits) -> Iterator[Row]:
    """The rows of a unit, in order. Blocks; what is wrong with a row is that row's error.

    Raises:
        StorageError: something cannot be read just now.
    """
    if unit.kind == "tar":
        yield from tars.read(unit, columns.image, columns.prompt, columns.id, limits)
        return
    if unit.kind == "broken":
        yield Row(unit.first, unit.shard.rpartition("/")[2], InvalidArgument(unit.problem, field=FIELD))
        return
    if unit.kind == "parquet":
        rows: Iterator[Row | PendingRow] = tables.read(unit, columns.image, columns.prompt, columns.id, limits)
    else:
        rows = _pictures(unit, limits)
    with ThreadPoolExecutor(_FILES_AHEAD, thread_name_prefix="critiq-read") as pool:
        ahead: deque[Future[Row] | Row] = deque()
        for row in rows:
            ahead.append(pool.submit(row.finish) if isinstance(row, PendingRow) else row)
            if len(ahead) > _FILES_AHEAD:
                yield _finished(ahead.popleft())
        while ahead:
            yield _finished(ahead.popleft())


def _finished(row: Future[Row] | Row) -> Row:
    return row if isinstance(row, Row) else row.result()


def _pictures(unit: Unit, limits: ImageLimits) -> Iterator[PendingRow]:
    folder = place(unit.shard)
    for position, (path, prompt, sidecar) in enumerate(unit.pictures, start=unit.first):
        yield PendingRow(position, _readable(path), partial(_read_both, folder, path, prompt, sidecar, limits))


def _read_both(folder: Place, path: str, prompt: str, sidecar: str, limits: ImageLimits) -> tuple[Image, str]:
    data = read_picture(folder, path, limits)
    return data, prompt or (prompt_of_file(sidecar, read_picture(folder, sidecar, limits)) if sidecar else "")


def _readable(path: str) -> str:
    """File names need not be valid UTF-8; every output is."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
