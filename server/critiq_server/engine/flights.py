"""Single flight: whoever asks for a value that is being computed waits for that computation.

A flight lives as long as somebody waits for it. It passes its waiters' demands on: as urgent as the most urgent of
them, wanted until the last of their deadlines. When the last one leaves, the computation is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Generic, TypeVar

from critiq_server.engine.demand import Demand, Priority

Value = TypeVar("Value")


class Flight(Generic[Value]):
    """One computation under way; a :class:`~critiq_server.engine.demand.Demand` on what it needs in turn."""

    __slots__ = ("_demands", "outcome")

    def __init__(self) -> None:
        self._demands: list[Demand] = []
        self.outcome: asyncio.Future[Value] | None = None

    @property
    def deadline(self) -> float:
        return max((demand.deadline for demand in self._demands), default=0.0)

    @property
    def priority(self) -> Priority:
        return min((demand.priority for demand in self._demands), default=Priority.BULK)

    def add(self, demand: Demand) -> None:
        self._demands.append(demand)

    def remove(self, demand: Demand) -> bool:
        """Takes one waiter out; true if none is left."""
        self._demands.remove(demand)
        return not self._demands


class Flights(Generic[Value]):
    """All computations under way, by key."""

    def __init__(self) -> None:
        self._flights: dict[Hashable, Flight[Value]] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    async def join(self, key: Hashable, demand: Demand, start: Callable[[Flight[Value]], Awaitable[Value]]) -> Value:
        """The value of ``key``: from the computation under way, or from a new one made by ``start``.

        Raises what the computation raises. Cancelling the caller leaves the computation to the other waiters.
        """
        flight = self._flights.get(key)
        if flight is None or flight.outcome is None:
            flight = Flight()
            flight.add(demand)
            flight.outcome = asyncio.ensure_future(start(flight))
            self._flights[key] = flight
            flight.outcome.add_done_callback(partial(self._landed, key, flight))
        else:
            flight.add(demand)
        try:
            return await asyncio.shield(flight.outcome)
        finally:
            if flight.remove(demand) and not flight.outcome.done():
                # Nobody else may join a computation that is being cancelled.
                self._forget(key, flight)
                flight.outcome.cancel()

    def _landed(self, key: Hashable, flight: Flight[Value], outcome: asyncio.Future[Value]) -> None:
        self._forget(key, flight)
        if not outcome.cancelled():
            outcome.exception()  # Marks it as seen: the waiters may all have gone.

    def _forget(self, key: Hashable, flight: Flight[Value]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
