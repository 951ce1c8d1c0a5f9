"""How much one key may ask for. Counted in this process from its start, or with other processes (shared_counts.py)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from critiq.errors import TooBusy
from critiq_server.security.keys import Caller

caller: ContextVar[str | None] = ContextVar("caller", default=None)
"""Name of the key that the current task's call carries; ``None`` where no keys are asked for."""

_DAY = 86_400
_CONCURRENCY_HINT = 0.1


@dataclass(slots=True)
class Spent:
    """What a key has spent: a token bucket for the rate, calls of the day (UTC).

    Args:
        tokens: calls that may be made at once.
        filled: when ``tokens`` was right, in seconds of a clock that only a restart of the machine sets back.
        seen: when the last call came, in seconds since 1970.
        day, today: a day since 1970, and calls on it.
        other_day, then: the same of the day before it, so that a clock set over midnight and back loses no count.
    """

    tokens: float
    filled: float
    seen: float = 0.0
    day: int = 0
    today: int = 0
    other_day: int = 0
    then: int = 0

    def spend(self, key: Caller, monotonic: float, wall: float) -> TooBusy | None:
        """Counts a call at that time; if that is refused, nothing is counted.

        Args:
            monotonic: seconds, for the rate.
            wall: seconds since 1970, for the day.
        """
        rate, per_day = key.requests_per_second, key.requests_per_day
        day, gone = divmod(wall, _DAY)
        if day != self.day:
            before = self.then if day == self.other_day else 0
            self.other_day, self.then = self.day, self.today
            self.day, self.today = int(day), before
        self.seen = wall
        if per_day is not None and self.today >= per_day:
            return TooBusy(
                f"the key {key.name!r} has used its {per_day} requests of this day (until midnight UTC)",
                retry_after=_DAY - gone,
            )
        if rate is not None:
            # The clock is behind where the machine has been started anew since.
            self.tokens = min(capacity(key), self.tokens + max(0.0, monotonic - self.filled) * rate)
            self.filled = monotonic
            if self.tokens < 1:
                return TooBusy(
                    f"the key {key.name!r} may make {rate:g} requests a second; send fewer at once",
                    retry_after=(1 - self.tokens) / rate,
                )
            self.tokens -= 1
        self.today += 1
        return None


class Counts(Protocol):
    """What several processes have counted together. If it fails, each goes on by itself; nothing is raised."""

    def spend(self, of: bytes, here: Spent, spend: Callable[[], TooBusy | None]) -> TooBusy | None:
        """``spend`` changes ``here``, which is what all have spent by then, and what they have spent from then on."""

    def elsewhere(self, of: bytes) -> int:
        """Calls under way in the other processes."""

    def enter(self, of: bytes, check: Callable[[int], None]) -> bytes | None:
        """Counts a call under way, unless ``check`` of those elsewhere raises; what :meth:`leave` needs is returned."""

    def leave(self, of: bytes, entered: bytes | None) -> None:
        """The call has ended."""


class Allowance:
    """What a key has left: a token bucket for the rate, calls under way, calls of the day (UTC).

    Args:
        counts: those of all processes that count together; ``None``: this one counts for itself.
        monotonic, wall: clocks, in seconds.
    """

    def __init__(
        self,
        key: Caller,
        counts: Counts | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.key = key
        self._id = hashlib.blake2b(key.handle.encode(), digest_size=16).digest()
        self._counts = counts
        self._monotonic, self._wall = monotonic, wall
        self._spent = Spent(capacity(key), monotonic())
        self._under_way = 0

    def change(self, key: Caller) -> None:
        """Other limits from now on; what is spent stays spent."""
        self.key = key
        self._spent.tokens = min(self._spent.tokens, capacity(key))

    def check_room(self) -> None:
        """Raises ``TooBusy`` if as many calls are under way as may be."""
        counts = self._counts if self.key.concurrency is not None else None
        self._check(0 if counts is None else counts.elsewhere(self._id))

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call under way, in whose task :data:`caller` has its key's name; raises ``TooBusy``."""
        counts = self._counts if self.key.concurrency is not None else None
        entered = None
        if counts is None:
            self._check(0)
        else:
            entered = counts.enter(self._id, self._check)
        self._under_way += 1
        token = caller.set(self.key.name)
        try:
            yield
        finally:
            self._under_way -= 1
            if counts is not None:
                counts.leave(self._id, entered)
            with suppress(ValueError):  # a stream that is given up may be closed by another task
                caller.reset(token)

    def spend(self) -> None:
        """Counts a call, or an item of a stream; raises ``TooBusy``, and then counts nothing."""
        limited = self.key.requests_per_second is not None or self.key.requests_per_day is not None
        if self._counts is not None and limited:
            refusal = self._counts.spend(self._id, self._spent, self._spend)
        else:
            refusal = self._spend()
        if refusal is not None:
            raise refusal

    def _spend(self) -> TooBusy | None:
        return self._spent.spend(self.key, self._monotonic(), self._wall())

    def _check(self, elsewhere: int) -> None:
        limit = self.key.concurrency
        if limit is not None and self._under_way + elsewhere >= limit:
            raise TooBusy(
                f"the key {self.key.name!r} has {limit} calls under way, which is its limit; wait for one to end",
                retry_after=_CONCURRENCY_HINT,
            )


def capacity(key: Caller) -> float:
    """Calls that may be made at once."""
    return max(1.0, key.requests_per_second or 1.0)
