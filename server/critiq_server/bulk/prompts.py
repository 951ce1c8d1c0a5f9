"""Prompts that lie beside pictures: in one table for a folder, or in a file for each picture."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping

from critiq.cli.pictures import FILE_COLUMNS, PROMPT_COLUMNS
from critiq.errors import InvalidArgument
from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.storage import place

METADATA = ("metadata.jsonl", "metadata.csv")
"""Tables that are looked for in a folder of pictures."""

FIELD = "prompt"


def read_metadata(uri: str) -> dict[str, str]:
    """Prompts by picture, of a ``.jsonl`` or ``.csv`` table whose columns have the usual names.

    Raises:
        BulkError: the table cannot be read; the message names the line.
    """
    try:
        with place(uri).open() as file:
            text = file.read().decode("utf-8-sig")
    except FileNotFoundError as error:
        raise BulkError(f"there is no table of prompts {uri}") from error
    except UnicodeDecodeError as error:
        raise BulkError(f"{uri} is not UTF-8: {error}") from error
    rows: Iterable[tuple[int, Mapping[str, object]]]
    if uri.lower().endswith(".csv"):
        rows = _records(uri, text)
    elif uri.lower().endswith(".jsonl"):
        rows = ((number, _object(uri, number, line)) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    else:
        raise BulkError(f"{uri}: prompts by picture come as .jsonl or .csv")
    prompts: dict[str, str] = {}
    for number, row in rows:
        name, prompt = (_value(uri, number, row, columns) for columns in (FILE_COLUMNS, PROMPT_COLUMNS))
        if prompts.setdefault(name.removeprefix("./"), prompt) != prompt:
            raise BulkError(f"{uri}, line {number}: a second prompt for {name}")
    return prompts


def prompt_of_file(path: str, data: bytes) -> str:
    """The prompt in a picture's ``.txt``, or in ``prompt``, ``caption`` or ``text`` of its ``.json``.

    Raises:
        InvalidArgument: the file is not UTF-8, or no JSON object.
    """
    try:
        text = data.decode("utf-8-sig")
        if not path.endswith(".json"):
            return text.strip()
        return prompt_of_record(json.loads(text))
    except (ValueError, RecursionError) as error:  # of decoding either
        raise InvalidArgument(f"the file of the prompt, {path}, cannot be read: {error}", field=FIELD) from error


def prompt_of_record(record: object, name: str = "") -> str:
    """The value called ``name``, or the first of the usual names; empty if there is none.

    Raises:
        InvalidArgument: the record is not an object, or the value no text.
    """
    if not isinstance(record, dict):
        raise InvalidArgument("the JSON that has the prompt is not an object", field=FIELD)
    value = next((record[key] for key in ([name] if name else PROMPT_COLUMNS) if record.get(key) is not None), "")
    if not isinstance(value, str):
        raise InvalidArgument(f"the prompt is a {type(value).__name__}, not text", field=FIELD)
    return value


def _records(uri: str, text: str) -> Iterator[tuple[int, Mapping[str, object]]]:
    reader = csv.DictReader(io.StringIO(text))
    try:
        yield from enumerate(reader, start=2)
    except csv.Error as error:
        raise BulkError(f"{uri}, line {reader.line_num + 1}: no CSV: {error}") from error


def _object(uri: str, number: int, line: str) -> Mapping[str, object]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BulkError(f"{uri}, line {number}: no JSON: {error}") from error
    if not isinstance(row, dict):
        raise BulkError(f"{uri}, line {number}: no JSON object")
    return row


def _value(uri: str, number: int, row: Mapping[str, object], columns: tuple[str, ...]) -> str:
    found = next((column for column in columns if column in row), None)
    if found is None:
        raise BulkError(f"{uri}, line {number}: none of {', '.join(columns)}; there are {', '.join(map(str, row))}")
    value = row[found]
    if not isinstance(value, str):
        raise BulkError(f"{uri}, line {number}: {found} is not text")
    return value
