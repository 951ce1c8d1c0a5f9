"""How much one key may ask for. Counted in this process, from its start."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from critiq.errors import TooBusy
from critiq_server.security.keys import Caller

caller: ContextVar[str | None] = ContextVar("caller", default=None)
"""Name of the key that the current task's call carries; ``None`` where no keys are asked for."""

_DAY = 86_400
_CONCURRENCY_HINT = 0.1


class Allowance:
    """What a key has left: a token bucket for the rate, calls under way, calls of the day (UTC).

    Args:
        monotonic, wall: clocks, in seconds.
    """

    def __init__(
        self, key: Caller, monotonic: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self.key = key
        self._under_way = 0
        self._monotonic, self._wall = monotonic, wall
        self._tokens = self._capacity()
        self._filled = monotonic()
        self._day, self._today = 0, 0

    def change(self, key: Caller) -> None:
        """Other limits from now on; what is spent stays spent."""
        self.key = key
        self._tokens = min(self._tokens, self._capacity())

    def check_room(self) -> None:
        """Raises ``TooBusy`` if as many calls are under way as may be."""
        limit = self.key.concurrency
        if limit is not None and self._under_way >= limit:
            raise TooBusy(
                f"the key {self.key.name!r} has {limit} calls under way, which is its limit; wait for one to end",
                retry_after=_CONCURRENCY_HINT,
            )

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call under way, in whose task :data:`caller` has its key's name; raises ``TooBusy``."""
        self.check_room()
        self._under_way += 1
        token = caller.set(self.key.name)
        try:
            yield
        finally:
            self._under_way -= 1
            with suppress(ValueError):  # a stream that is given up may be closed by another task
                caller.reset(token)

    def spend(self) -> None:
        """Counts a call, or an item of a stream; raises ``TooBusy``, and then counts nothing."""
        rate, per_day = self.key.requests_per_second, self.key.requests_per_day
        if per_day is not None:
            day, gone = divmod(self._wall(), _DAY)
            if day != self._day:
                self._day, self._today = int(day), 0
            if self._today >= per_day:
                raise TooBusy(
                    f"the key {self.key.name!r} has used its {per_day} requests of this day (until midnight UTC)",
                    retry_after=_DAY - gone,
                )
        if rate is not None:
            now = self._monotonic()
            self._tokens = min(self._capacity(), self._tokens + (now - self._filled) * rate)
            self._filled = now
            if self._tokens < 1:
                raise TooBusy(
                    f"the key {self.key.name!r} may make {rate:g} requests a second; send fewer at once",
                    retry_after=(1 - self._tokens) / rate,
                )
            self._tokens -= 1
        self._today += 1

    def _capacity(self) -> float:
        return max(1.0, self.key.requests_per_second or 1.0)
