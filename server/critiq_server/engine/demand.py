"""Who wants a value, how urgently, and until when."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class Priority(IntEnum):
    """Smaller is more urgent."""

    INTERACTIVE = 0
    BULK = 1


class Demand(Protocol):
    """A reason to compute something. Both values may change while work waits, as callers join and leave."""

    @property
    def deadline(self) -> float:
        """Event-loop time after which nobody wants the value any more."""
        ...

    @property
    def priority(self) -> Priority: ...


@dataclass(frozen=True, slots=True, eq=False)
class Call:
    """The demand of one caller."""

    deadline: float
    priority: Priority = Priority.INTERACTIVE
