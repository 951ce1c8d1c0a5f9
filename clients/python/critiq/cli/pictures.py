"""Which pictures a command is about, and the prompts that belong to them."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from critiq.cli.exits import UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".webp", ".avif"})
FILE_COLUMNS = ("file", "file_name", "filename", "path", "image")
PROMPT_COLUMNS = ("prompt", "caption", "text")
STDIN = "-"


@dataclass(frozen=True, slots=True)
class Picture:
    """``name`` is how the picture is called in every output; ``root`` the directory it was found in."""

    name: str
    path: Path
    root: Path | None = None

    def source(self) -> Path | bytes:
        return sys.stdin.buffer.read() if self.name == STDIN else self.path


def collect(paths: Iterable[Path]) -> list[Picture]:
    """Each file once: those named, and those in directories that have a picture's suffix, sorted."""
    found: dict[str, Picture] = {}
    for path in paths:
        if path.is_dir():
            inside = (entry for entry in path.rglob("*") if entry.suffix.lower() in SUFFIXES and entry.is_file())
            for entry in sorted(inside):
                found.setdefault(_name(entry), Picture(_name(entry), entry, path))
        elif str(path) == STDIN or path.exists():
            found.setdefault(_name(path), Picture(_name(path), path))
        else:
            raise UsageError(f"no such file or directory: {_name(path)}")
    if not found:
        raise UsageError(f"no pictures ({', '.join(sorted(SUFFIXES))}) in {', '.join(_name(path) for path in paths)}")
    return list(found.values())


class Prompts:
    """Prompts by picture, from a file."""

    def __init__(self, file: Path) -> None:
        self._directory = file.parent
        self._by_name: dict[str, str] = {}
        for place, name, prompt in _read(file):
            if self._by_name.setdefault(os.path.normpath(name), prompt) != prompt:
                raise UsageError(f"{file}, {place}: a second prompt for {name}")

    def find(self, picture: Picture) -> str:
        """The prompt; empty if there is none.

        The file may name the picture as the command does, relative to either directory, or by its bare name.
        """
        absolute = picture.path.resolve()
        names = [str(picture.path), str(absolute)]
        for directory in (picture.root, self._directory):
            if directory is not None and absolute.is_relative_to(directory.resolve()):
                names.append(str(absolute.relative_to(directory.resolve())))
        names.append(picture.path.name)
        return next((self._by_name[name] for name in map(os.path.normpath, names) if name in self._by_name), "")


def sidecar_prompt(picture: Picture) -> str:
    """The text of ``photo.txt`` or ``photo.jpg.txt`` beside ``photo.jpg``; empty if there is none."""
    for path in (picture.path.with_suffix(".txt"), picture.path.with_name(f"{picture.path.name}.txt")):
        if path.is_file():
            return _text(path).strip()
    return ""


def _read(file: Path) -> Iterator[tuple[str, str, str]]:
    """``(place, name, prompt)``; the place is for messages."""
    if not file.is_file():
        raise UsageError(f"no such file: {file}")
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".txt": _read_txt}
    reader = readers.get(file.suffix.lower())
    if reader is None:
        raise UsageError(f"{file}: prompts come as {', '.join(readers)}")
    return reader(file)


def _read_csv(file: Path) -> Iterator[tuple[str, str, str]]:
    rows = csv.DictReader(_text(file).splitlines(keepends=True))
    columns = rows.fieldnames or []
    name_column = _column(columns, FILE_COLUMNS, file)
    prompt_column = _column(columns, PROMPT_COLUMNS, file)
    for row in rows:
        place = f"line {rows.line_num}"
        if row[name_column] is None or row[prompt_column] is None:
            raise UsageError(f"{file}, {place}: too few columns")
        yield place, row[name_column], row[prompt_column]


def _read_jsonl(file: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{file}, {place}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{file}, {place}: no JSON object")
        name = row[_column(list(row), FILE_COLUMNS, file)]
        prompt = row[_column(list(row), PROMPT_COLUMNS, file)]
        if not isinstance(name, str) or not isinstance(prompt, str):
            raise UsageError(f"{file}, {place}: file and prompt must be text")
        yield place, name, prompt


def _read_txt(file: Path) -> Iterator[tuple[str, str, str]]:
    for number, line in enumerate(_text(file).splitlines(), start=1):
        if not line.strip():
            continue
        name, tab, prompt = line.partition("\t")
        if not tab:
            raise UsageError(f"{file}, line {number}: a file name, a tab and a prompt are due")
        yield f"line {number}", name.strip(), prompt.strip()


def _column(columns: Iterable[str], known: tuple[str, ...], file: Path) -> str:
    for name in known:
        if name in columns:
            return name
    raise UsageError(f"{file}: none of the columns {', '.join(known)}; there are {', '.join(columns)}")


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {file}: {error}") from error


def _name(path: Path) -> str:
    # File names need not be valid UTF-8; every output is.
    return os.fsencode(path).decode("utf-8", "replace")
