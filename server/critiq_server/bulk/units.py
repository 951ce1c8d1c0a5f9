"""What there is to do: shards of the input, cut into units. A unit is what one part of the output holds."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

Kind = Literal["pictures", "parquet", "tar", "broken"]

UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class Unit:
    """Rows ``first .. first + rows - 1`` of one shard.

    Attributes:
        number: from 0, in the order of the input; names the part.
        shard: URI of the folder, Parquet file or tar file.
        rows: ``UNKNOWN`` where only reading to the end tells.
        offset: bytes; where in a tar file the first row begins.
        pictures: of a folder: path, prompt, and path of the file that has the prompt; empty where there is none.
        problem: of a broken shard: what is wrong with it. Its one row says so.
    """

    number: int
    shard: str
    kind: Kind
    first: int
    rows: int
    offset: int = 0
    pictures: tuple[tuple[str, str, str], ...] = ()
    problem: str = ""

    @property
    def part(self) -> str:
        """Name of the part."""
        return f"part-{self.number:06d}.parquet"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Unit:
        values = json.loads(text)
        return cls(
            **{**values, "pictures": tuple((path, prompt, sidecar) for path, prompt, sidecar in values["pictures"])}
        )


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a unit: rows written, and how many of them failed with which code."""

    unit: int
    rows: int
    failed: dict[str, int]
    seconds: float = 0.0

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Done:
        return cls(**json.loads(text))


@dataclass(frozen=True)
class Plan:
    """All units of an input. ``fingerprint`` changes with the input's files and with how they are read and cut."""

    units: Sequence[Unit]
    fingerprint: str

    @property
    def rows(self) -> int | None:
        """``None`` where only reading tells."""
        return None if any(unit.rows == UNKNOWN for unit in self.units) else sum(unit.rows for unit in self.units)


def ranges(rows: int, at_most: int) -> Iterator[tuple[int, int]]:
    """``(first, count)`` of consecutive pieces that cover ``rows`` rows, each of 1 to ``at_most``."""
    for first in range(0, rows, at_most):
        yield first, min(at_most, rows - first)


def fingerprint(lines: Iterable[object]) -> str:
    """64 hexadecimal digits that change with any of ``lines``."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps(line).encode())
        digest.update(b"\n")
    return digest.hexdigest()
