"""The other serving processes of this machine, as the parts that answer see them (docs/workers.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from critiq.types import Processes

SECONDS = 3.0
"""Within which another process must answer to be counted."""
NOTHING: Mapping[str, Any] = MappingProxyType({})

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Replies:
    """What the others said, by their numbers; ``processes`` is ``None`` where this one is no part of a group."""

    values: Mapping[int, Any]
    processes: Processes | None = None

    def read(self, read: Callable[[Any], T | None]) -> tuple[list[T], Processes | None]:
        """What ``read`` makes of the replies. One of which it makes ``None`` counts as missing."""
        found = {number: read(value) for number, value in self.values.items()}
        unfit = [number for number, value in found.items() if value is None]
        processes = self.processes
        if processes is not None and unfit:
            missing = tuple(sorted((*processes.missing, *unfit)))
            processes = replace(processes, answered=processes.answered - len(unfit), missing=missing)
        return [value for value in found.values() if value is not None], processes


class Others(Protocol):
    """All the serving processes of a group but this one, which is the ``number``-th of ``count``."""

    @property
    def number(self) -> int: ...
    @property
    def count(self) -> int: ...

    async def tell(self, what: str, **values: str) -> None:
        """Has every other process do the same. Raises ``FailedPrecondition`` if one of them could not."""

    async def ask(self, what: str, about: Mapping[str, Any] = NOTHING, seconds: float = SECONDS) -> Replies:
        """Asks all at once. Raises nothing: who does not answer within ``seconds`` is named in the replies."""


class Nobody:
    """Where a process was started by itself."""

    number, count = 0, 1

    async def tell(self, what: str, **values: str) -> None:
        """Does nothing."""

    async def ask(self, what: str, about: Mapping[str, Any] = NOTHING, seconds: float = SECONDS) -> Replies:
        """There are no replies."""
        return Replies({})


ALONE: Others = Nobody()
