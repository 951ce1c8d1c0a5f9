"""Where the pictures of a build come from, with the prompts beside them.

A source gives its items in the same order every time and holds no more than one file of it in memory (a Parquet file:
one of its batches). Each item has a name of its own: what a file is called within its source.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from blake3 import blake3

from critiq.cli.exits import UsageError
from critiq.cli.pictures import FILE_COLUMNS, PROMPT_COLUMNS, SUFFIXES, Picture, Prompts, collect, sidecar_prompt

_NAME_COLUMNS = ("name", "id", "key")
_BYTES_COLUMNS = ("image", "picture", "jpg", "png", "bytes")


@dataclass(frozen=True, slots=True)
class Item:
    """One picture to compute features of. ``load`` reads its file, and raises ``OSError`` if it cannot."""

    name: str
    prompt: str
    load: Callable[[], bytes]


@dataclass(frozen=True, slots=True)
class Source:
    """Items in their order, and how many there are where that is known beforehand."""

    items: Callable[[], Iterable[Item]]
    count: int | None


@dataclass(frozen=True, slots=True)
class Shard:
    """Part ``number`` of ``of``, from 1: whichever machine asks, an item is in the same one."""

    number: int = 1
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``2/8``; raises ``UsageError`` for anything else."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise UsageError(f"{text!r} is no shard; write 1/4 to 4/4 for the four parts of four")
        return cls(int(number), int(of))

    def holds(self, name: str) -> bool:
        digest = blake3(name.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8], "big") % self.of == self.number - 1


def open_source(path: Path, prompts: Path | None = None) -> Source:
    """The source in ``path``.

    Args:
        path: a directory of pictures, each with its prompt in ``photo.txt`` beside it; a ``.jsonl`` file of objects
            with a file and a prompt; a ``.parquet`` file with pictures (bytes, the Hugging Face form, or paths) and
            prompts; a ``.tar`` in WebDataset's form. Paths in files are relative to the file.
        prompts: of a directory: a ``.csv``, ``.jsonl`` or ``.txt`` file that names pictures and prompts.

    Raises:
        UsageError: there is nothing, or it makes no sense.
    """
    if prompts is not None and not path.is_dir():
        raise UsageError(f"--prompts goes with a directory; {path} carries its own prompts")
    if path.is_dir():
        return _directory(path, Prompts(prompts) if prompts is not None else None)
    if not path.is_file():
        raise UsageError(f"no such file or directory: {path}")
    readers = {".jsonl": _jsonl, ".parquet": _parquet, ".tar": _tar}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: pictures come from a directory, {', '.join(readers)}")
    source = reader(path)
    return Source(lambda: _named_apart(source.items()), source.count)


def _directory(path: Path, prompts: Prompts | None) -> Source:
    pictures = collect([path])

    def item(picture: Picture) -> Item:
        name = picture.path.relative_to(path).as_posix()
        try:
            prompt = prompts.find(picture) if prompts is not None else sidecar_prompt(picture)
        except UsageError as error:  # that picture's prompt cannot be read
            return Item(name, "", partial(_missing, str(error)))
        return Item(name, prompt, picture.path.read_bytes)

    return Source(lambda: map(item, pictures), len(pictures))


def _jsonl(path: Path) -> Source:
    items = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{where}: no JSON: {error}") from error
        if not isinstance(row, dict):
            raise UsageError(f"{where}: no JSON object")
        file, prompt = _text(row, FILE_COLUMNS, where), _text(row, PROMPT_COLUMNS, where, default="")
        items.append(Item(_text(row, _NAME_COLUMNS, where, default=file), prompt, (path.parent / file).read_bytes))
    return Source(lambda: items, len(items))


def _parquet(path: Path) -> Source:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UsageError("Parquet files need pyarrow: pip install 'critiq[parquet]'") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is no Parquet file: {error}") from error
    columns = file.schema_arrow.names
    pictures = next((name for name in (*_BYTES_COLUMNS, *FILE_COLUMNS) if name in columns), None)
    if pictures is None:
        wanted = ", ".join(dict.fromkeys((*_BYTES_COLUMNS, *FILE_COLUMNS)))
        raise UsageError(f"{path}: none of the columns {wanted}; there are {', '.join(columns)}")
    prompt = next((name for name in PROMPT_COLUMNS if name in columns), None)
    name = next((name for name in _NAME_COLUMNS if name in columns), None)
    wanted_columns = [column for column in (pictures, prompt, name) if column is not None]

    def items() -> Iterator[Item]:
        number = 0
        for batch in file.iter_batches(batch_size=64, columns=wanted_columns):
            for row in batch.to_pylist():
                value = row[pictures]
                data, file_name = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (value, None)
                if isinstance(data, str):
                    data, file_name = None, data
                told = str(row[name]) if name is not None else file_name or f"row {number}"
                yield Item(told, str((row[prompt] if prompt else None) or ""), _loader(path, data, file_name, told))
                number += 1

    return Source(items, file.metadata.num_rows)


def _loader(path: Path, data: bytes | None, file_name: str | None, told: str) -> Callable[[], bytes]:
    if data is not None:
        return partial(bytes, data)
    if file_name:
        return (path.parent / file_name).read_bytes
    return partial(_missing, f"{told}: neither bytes nor a path")


def _missing(message: str) -> bytes:
    raise OSError(message)


def _tar(path: Path) -> Source:
    """WebDataset: files that share the name up to the first dot are one sample."""

    def items() -> Iterator[Item]:
        sample: dict[str, bytes] = {}
        stem = ""
        problem = None if _has_end(path) else "the end is missing"
        try:
            with tarfile.open(path, "r|") as archive:
                for member in archive:
                    folder, _, base = member.name.rpartition("/")
                    here = f"{folder}/{base.split('.', 1)[0]}".lstrip("/")
                    if not member.isfile() or not base.partition(".")[0]:
                        continue
                    if here != stem and sample:
                        yield from _sample_item(stem, sample)
                        sample = {}
                    stem = here
                    stream = archive.extractfile(member)
                    sample[base.partition(".")[2].lower()] = stream.read() if stream is not None else b""
        except (tarfile.TarError, EOFError) as error:
            problem = str(error)
        if sample:
            yield from _sample_item(stem, sample)
        if problem is not None:  # what is there is built; what is not is one failure
            yield Item(path.name, "", partial(_missing, f"the tar file is cut short or damaged: {problem}"))

    return Source(items, None)


def _has_end(path: Path) -> bool:
    """A tar file ends in 1,024 zero bytes; ``tarfile`` takes one that was cut between two members for whole."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 1024))
        return file.read() == bytes(1024)


def _sample_item(stem: str, sample: dict[str, bytes]) -> Iterator[Item]:
    kind = next((kind for kind in sample if f".{kind.rpartition('.')[2]}" in SUFFIXES), None)
    if kind is None:
        return
    prompt = ""
    if "txt" in sample:
        prompt = sample["txt"].decode("utf-8", "replace").strip()
    elif "json" in sample:
        try:
            row = json.loads(sample["json"])
        except ValueError:
            row = {}
        if isinstance(row, dict):
            prompt = str(next((row[column] for column in PROMPT_COLUMNS if row.get(column)), ""))
    yield Item(f"{stem}.{kind}", prompt, partial(bytes, sample[kind]))


def _named_apart(items: Iterable[Item]) -> Iterator[Item]:
    """A picture may come twice, with two prompts: the second gets a number to its name."""
    seen: dict[str, int] = {}
    for item in items:
        times = seen[item.name] = seen.get(item.name, 0) + 1
        yield item if times == 1 else Item(f"{item.name}#{times}", item.prompt, item.load)


def _text(row: dict[str, Any], columns: Iterable[str], where: str, default: str | None = None) -> str:
    for column in columns:
        if isinstance(row.get(column), str | int):
            return str(row[column])
    if default is None:
        raise UsageError(f"{where}: none of the entries {', '.join(columns)}; there are {', '.join(row)}")
    return default
