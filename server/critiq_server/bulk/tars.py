"""Tar files of samples, as webdataset writes them: members side by side that share a name up to its first dot."""

from __future__ import annotations

import gzip
import json
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO, cast

from critiq.cli.pictures import SUFFIXES
from critiq.errors import CritiqError, InvalidArgument, TooLarge
from critiq_server.bulk.prompts import prompt_of_file, prompt_of_record
from critiq_server.bulk.rows import Row
from critiq_server.bulk.storage import place
from critiq_server.bulk.units import UNKNOWN, Unit
from critiq_server.images.headers import FIELD
from critiq_server.images.limits import ImageLimits

_IMAGES = frozenset(suffix.removeprefix(".") for suffix in SUFFIXES)
_TEXTS = ("txt", "caption", "prompt", "text")
_MOST_TEXT = 2**20
"""Bytes of a text or JSON member that are read; longer ones are an error of their row."""

_DAMAGE = (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError, ArithmeticError, LookupError)
"""The last three come of headers that say what cannot be."""


@dataclass
class _Sample:
    """``members``: what was loaded, or why not, by the part of the name after the first dot; ``seen``: those
    parts."""

    key: str
    offset: int
    seen: set[str] = field(default_factory=set)
    members: dict[str, bytes | CritiqError] = field(default_factory=dict)


class _Damaged(Exception):
    """A tar file cannot be read on."""


def cut(shard: str, at_most: int) -> list[Unit]:
    """The units of a file. One of this machine is cut by its headers; others, and packed ones, are one unit.

    Raises:
        StorageError: the file cannot be read just now.
    """
    where = place(shard)
    if not where.is_local or _is_packed(shard):
        return [Unit(0, shard, "tar", 0, UNKNOWN)]
    starts: list[int] = []
    rows = 0
    with where.open() as file:
        try:
            for sample in _samples(file, ImageLimits(), frozenset()):
                if rows % at_most == 0:
                    starts.append(sample.offset)
                rows += 1
        except _Damaged:  # one row more, which says so, in the last unit
            starts, rows = starts or [0], rows + 1
    if not starts:  # an empty archive, or only folders and hidden files
        return []
    ends = [*(number * at_most for number in range(1, len(starts))), rows]
    return [
        Unit(0, shard, "tar", number * at_most, end - number * at_most, offset=start)
        for number, (start, end) in enumerate(zip(starts, ends, strict=True))
    ]


def read(unit: Unit, image: str, prompt: str, id_: str, limits: ImageLimits) -> Iterator[Row]:
    """The rows of a unit, in order; the last row of a file that is damaged says so.

    Args:
        image: which member is the picture, by the part of its name after the first dot; empty: the first picture.
        prompt: the member that has the prompt, or else its name in the JSON member; empty: the usual ones.
        id_: the name of the row's id in the JSON member; empty: the sample's name is the id.
    """
    wanted = frozenset({image} if image else _IMAGES) | {*_TEXTS, "json", prompt}
    position, last = unit.first, None if unit.rows == UNKNOWN else unit.first + unit.rows
    with place(unit.shard).open() as source:
        source.seek(unit.offset)
        packed = _is_packed(unit.shard)
        file = cast(BinaryIO, gzip.GzipFile(fileobj=source)) if packed else source
        try:
            for sample in _samples(file, limits, wanted):
                if position == last:
                    return
                yield _row(position, sample, image, prompt, id_)
                position += 1
        except _Damaged as error:
            if position != last:
                name = f"{unit.shard.partition('?')[0].rpartition('/')[2]}#{position}"
                yield Row(position, name, InvalidArgument(str(error), field=FIELD))


def _samples(file: BinaryIO, limits: ImageLimits, wanted: frozenset[str]) -> Iterator[_Sample]:
    """The samples from where ``file`` stands, with their members that are ``wanted``. Only goes forward."""
    sample: _Sample | None = None
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                cast(Any, tar).members = []  # which would grow with the file
                key, extension = _split(member.name)
                if not member.isfile() or not extension:
                    continue
                if sample is None or sample.key != key or extension in sample.seen:  # names may begin anew
                    if sample is not None:
                        yield sample
                    sample = _Sample(key, member.offset)
                sample.seen.add(extension)
                if extension in wanted:
                    sample.members[extension] = _load(tar, member, extension, limits)
            end = cast(Any, tar).offset
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"at byte {end:,} there is neither a member nor the end mark")
    except _DAMAGE as error:
        if sample is not None:
            yield sample
        raise _Damaged(f"the tar file is damaged, and rows from here on cannot be read: {error}") from error
    if sample is not None:
        yield sample


def _load(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, limits: ImageLimits) -> bytes | CritiqError:
    text = extension == "json" or extension in _TEXTS
    if text and member.size > _MOST_TEXT:
        return TooLarge(
            f"the sample's .{extension} has {member.size:,} bytes, more than {_MOST_TEXT:,}", field="prompt"
        )
    if not text:
        try:
            limits.check_bytes(member.size, FIELD)
        except CritiqError as error:
            return error
    opened = tar.extractfile(member)
    return opened.read() if opened is not None else b""


def _split(name: str) -> tuple[str, str]:
    """Key and extension of a member; hidden files have none."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower() if stem else ""


def _row(position: int, sample: _Sample, image: str, prompt: str, id_: str) -> Row:
    members = sample.members
    name = sample.key
    try:
        record = json.loads(_bytes(members["json"])) if "json" in members else {}
        if id_ and isinstance(record, dict) and record.get(id_) is not None:
            name = str(record[id_])
        text = next((key for key in ([prompt] if prompt else _TEXTS) if key in members), None)
        words = prompt_of_record(record, prompt) if text is None else prompt_of_file(text, _bytes(members[text]))
        picture = next((key for key in members if key == image or (not image and key in _IMAGES)), None)
        if picture is None:
            kind = f".{image}" if image else "picture"
            raise InvalidArgument(f"the sample has no {kind} among its members", field=FIELD)
        return Row(position, name, _bytes(members[picture]), words)
    except CritiqError as error:
        return Row(position, name, error)
    except (ValueError, RecursionError) as error:
        return Row(position, name, InvalidArgument(f"the sample's .json cannot be read: {error}", field="prompt"))


def _bytes(member: bytes | CritiqError) -> bytes:
    if isinstance(member, CritiqError):
        raise member
    return member


def _is_packed(shard: str) -> bool:
    return shard.partition("?")[0].lower().endswith("gz")
