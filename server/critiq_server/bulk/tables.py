"""Parquet files as inputs: pictures in a column as bytes, as paths or URLs, or as ``{bytes, path}``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow
import pyarrow.parquet

from critiq.cli.pictures import PROMPT_COLUMNS
from critiq.errors import CritiqError, InvalidArgument
from critiq_server.bulk.errors import BulkError, StorageError
from critiq_server.bulk.rows import Image, PendingRow, Row, read_pointer
from critiq_server.bulk.storage import Place, place
from critiq_server.bulk.units import Unit, ranges
from critiq_server.images.headers import FIELD
from critiq_server.images.limits import ImageLimits

IMAGE_COLUMNS = ("image", "jpg", "png", "webp", "picture", "bytes", "image_bytes", "path", "file", "file_name", "url")
ID_COLUMNS = ("id", "key", "__key__", "image_id", "uuid")

_LIGHT = 128 * 2**20
"""Bytes, unpacked, up to which a row group is read again for each unit that has some of its rows."""
_ROWS_AT_ONCE = 32


def cut(shard: str, image: str, prompt: str, id_: str, at_most: int) -> list[Unit]:
    """The units of a file: whole row groups together, or slices of one that is light.

    Raises:
        BulkError: a column is not there.
        StorageError: the file cannot be read just now.
    """
    try:
        with place(shard).open() as file:
            footer = pyarrow.parquet.ParquetFile(file)
            _chosen(footer.schema_arrow, image, prompt, id_)
            groups = [footer.metadata.row_group(number) for number in range(footer.metadata.num_row_groups)]
    except (pyarrow.ArrowException, FileNotFoundError) as error:
        return [Unit(0, shard, "broken", 0, 1, problem=f"the Parquet file cannot be read: {error}")]
    units: list[Unit] = []
    first = held = 0
    for group in groups:
        if held and held + group.num_rows > at_most:
            units.append(Unit(0, shard, "parquet", first, held))
            first, held = first + held, 0
        held += group.num_rows
        if held > at_most and group.total_byte_size <= _LIGHT:
            units += [Unit(0, shard, "parquet", first + start, count) for start, count in ranges(held, at_most)]
            first, held = first + held, 0
    if held:
        units.append(Unit(0, shard, "parquet", first, held))
    return units


def read(unit: Unit, image: str, prompt: str, id_: str, limits: ImageLimits) -> Iterator[Row | PendingRow]:
    """The rows of a unit, in order; a file that is damaged, or now too short, gives errors from there on."""
    position, last = unit.first, unit.first + unit.rows
    base = place(unit.shard.rpartition("/")[0] or ".")
    tried_at = -1
    while position < last:
        try:
            for record in _records(unit.shard, position, last, image, prompt, id_):
                yield _row(position, unit, record, base, limits)
                position += 1
            problem = "the file has fewer rows than when the run began"
        except (pyarrow.ArrowException, OSError, MissingColumn) as error:
            # A damaged page is an OSError too, as is a read that would succeed a moment later.
            if isinstance(error, OSError) and tried_at != position:
                tried_at = position
                _probe(unit.shard)
                continue
            problem = f"the Parquet file cannot be read: {error}"
        for left in range(position, last):
            yield Row(left, _name(unit, left), InvalidArgument(problem, field=FIELD))
        return


class MissingColumn(BulkError):
    """A file lacks a column."""


def _probe(shard: str) -> None:
    """Raises ``StorageError`` if the file cannot be read at all just now."""
    with suppress(FileNotFoundError), place(shard).open() as file:
        try:
            file.read(4)
        except OSError as error:
            raise StorageError(f"cannot read {shard.partition('?')[0]}: {error}") from error


def _records(shard: str, first: int, last: int, image: str, prompt: str, id_: str) -> Iterator[tuple[Any, Any, Any]]:
    """``(image, prompt, id)`` of the rows from ``first`` to before ``last``."""
    with place(shard).open() as source:
        file = pyarrow.parquet.ParquetFile(source, buffer_size=2**20, pre_buffer=False)
        chosen = _chosen(file.schema_arrow, image, prompt, id_)
        numbers, before = _groups(file.metadata, first, last)
        skip, left = first - before, last - first
        columns = [column for column in chosen if column]
        for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=numbers, columns=columns):
            kept = batch.slice(min(skip, batch.num_rows), left)
            skip = max(0, skip - batch.num_rows)
            lists = [_values(kept.column(column)) if column else [None] * kept.num_rows for column in chosen]
            yield from zip(*lists, strict=True)
            left -= kept.num_rows
            if left == 0:
                return


def _values(column: Any) -> list[Any]:
    """Python's values; in place of text that is not UTF-8 the error that says so."""
    try:
        found: list[Any] = column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]
    return found


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        return InvalidArgument(f"the row's text is not UTF-8 (byte {error.object[error.start]:#04x} at {error.start})")


def _groups(metadata: Any, first: int, last: int) -> tuple[list[int], int]:
    """Row groups that hold those rows, and the number of rows before them."""
    numbers, before, start = [], 0, 0
    for number in range(metadata.num_row_groups):
        end = start + metadata.row_group(number).num_rows
        if end <= first:
            before = end
        elif start < last:
            numbers.append(number)
        start = end
    return numbers, before


def _chosen(schema: Any, image: str, prompt: str, id_: str) -> tuple[str, str, str]:
    """The columns of image, prompt and id; empty where there is none."""

    def choose(asked: str, usual: tuple[str, ...], option: str) -> str:
        if asked and asked not in schema.names:
            raise MissingColumn(f"there is no column {asked!r} ({option}); there are {', '.join(schema.names)}")
        return asked or next((name for name in usual if name in schema.names), "")

    found = choose(image, IMAGE_COLUMNS, "--image-column")
    if not found:
        raise MissingColumn(f"name the column of the pictures with --image-column; there are {', '.join(schema.names)}")
    return found, choose(prompt, PROMPT_COLUMNS, "--prompt-column"), choose(id_, ID_COLUMNS, "--id-column")


def _row(position: int, unit: Unit, record: tuple[Any, Any, Any], base: Place, limits: ImageLimits) -> Row | PendingRow:
    image, prompt, id_ = record
    name = _name(unit, position) if id_ is None or isinstance(id_, CritiqError) else str(id_)
    for value in (image, prompt):
        if isinstance(value, CritiqError):
            return Row(position, name, value)
    if isinstance(image, dict) and {"bytes", "path"} & image.keys():
        image = image.get("bytes") or image.get("path")
    if prompt is not None and not isinstance(prompt, str):
        problem = InvalidArgument(f"the prompt is a {type(prompt).__name__}, not text", field="prompt")
        return Row(position, name, problem)
    text = prompt or ""
    if isinstance(image, bytes):
        return Row(position, name, image, text)
    if isinstance(image, str):
        pointer = image

        def fetch() -> tuple[Image, str]:
            return read_pointer(base, pointer, limits), text

        return PendingRow(position, name, fetch)
    what = "nothing" if image is None else f"a {type(image).__name__}"
    return Row(position, name, InvalidArgument(f"the row has {what} in place of a picture", field=FIELD))


def _name(unit: Unit, position: int) -> str:
    return f"{unit.shard.partition('?')[0].rpartition('/')[2]}#{position}"
