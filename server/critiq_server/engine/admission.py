"""The gate in front of everything: how much work is accepted at once."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from critiq.errors import Stopping, TooBusy


class Admission:
    """Counts pictures and bytes that were accepted and not yet answered. Used from the event loop only.

    Args:
        max_items: pictures at once.
        max_bytes: bytes of their data at once; a single request may exceed it if nothing else is under way.
        on_change: told (items, bytes) after every change.
    """

    def __init__(
        self, max_items: int, max_bytes: int, on_change: Callable[[int, int], None] = lambda items, size: None
    ):
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._on_change = on_change
        self.items = 0
        self.bytes = 0
        self._rate = 0.0
        self._answered_at = time.monotonic()
        self._closed = False
        self._waiters: deque[tuple[asyncio.Future[None], int]] = deque()
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def admit(self, items: int, size: int) -> Iterator[None]:
        """Holds a place for ``items`` pictures of ``size`` bytes.

        Raises:
            Stopping: the server takes no new work.
            TooBusy: there is no room now; carries a retry hint.
        """
        if self._closed:
            raise Stopping("the server is stopping; send the request to another one", retry_after=1.0)
        if not self._has_room(items, size):
            raise TooBusy(
                f"the server has {self.items} pictures ({self.bytes} bytes) under way and accepts {self._max_items} "
                f"({self._max_bytes} bytes) at once; try again later",
                retry_after=self._hint(),
            )
        self._change(items, size)
        try:
            yield
        finally:
            self._change(-items, -size)
            self._answered(items)

    async def room(self, size: int) -> None:
        """Waits until a picture of ``size`` bytes has room: for callers that can be slowed down.

        Those who wait are woken in the order in which they came.
        """
        waited = False
        while not self._closed and not self._has_room(1, size):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if waited:  # Somebody else was quicker: the place at the head of the queue stays.
                self._waiters.appendleft((waiter, size))
            else:
                self._waiters.append((waiter, size))
            waited = True
            try:
                await waiter
            except asyncio.CancelledError:
                self._wake()
                raise

    def close(self) -> None:
        """Takes no new work from now on."""
        self._closed = True
        self._wake()

    async def drained(self) -> None:
        """Returns once everything that was accepted is answered."""
        await self._idle.wait()

    def _has_room(self, items: int, size: int) -> bool:
        return self._fits(self.items, self.bytes, items, size)

    def _fits(self, held: int, held_size: int, items: int, size: int) -> bool:
        return held + items <= self._max_items and (held == 0 or held_size + size <= self._max_bytes)

    def _change(self, items: int, size: int) -> None:
        self.items += items
        self.bytes += size
        self._on_change(self.items, self.bytes)
        if self.items == 0:
            self._idle.set()
        else:
            self._idle.clear()
        if items < 0:
            self._wake()

    def _wake(self) -> None:
        """Wakes as many from the head of the queue as there is room for; all of them once closed."""
        held, held_size = self.items, self.bytes
        while self._waiters:
            waiter, size = self._waiters[0]
            if not waiter.done():
                if not self._closed and not self._fits(held, held_size, 1, size):
                    return
                waiter.set_result(None)
                held, held_size = held + 1, held_size + size
            self._waiters.popleft()

    def _answered(self, items: int) -> None:
        now = time.monotonic()
        elapsed, self._answered_at = now - self._answered_at, now
        rate = items / max(elapsed, 1e-4)
        self._rate = rate if self._rate == 0 else 0.95 * self._rate + 0.05 * rate

    def _hint(self) -> float:
        """Seconds in which about half of the present work will be done, between 0.05 and 10."""
        return min(10.0, max(0.05, self.items / (2 * self._rate))) if self._rate else 0.5
