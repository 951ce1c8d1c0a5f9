"""Single flight: whoever asks for a value that is being computed waits for that computation.

A flight lives as long as somebody waits for it. It passes its waiters' demands on: as urgent as the most urgent of
them, wanted until the last of their deadlines. When the last one leaves, the computation is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from critiq_server.engine.demand import Demand, Priority

Value = TypeVar("Value")


class Flight(Generic[Value]):
    """One computation under way; a :class:`~critiq_server.engine.demand.Demand` on what it needs in turn."""

    __slots__ = ("_demands", "task")

    def __init__(self) -> None:
        self._demands: list[Demand] = []
        self.task: asyncio.Task[Value] | None = None

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

    async def join(
        self, key: Hashable, demand: Demand, start: Callable[[Flight[Value]], Coroutine[Any, Any, Value]]
    ) -> Value:
        """The value of ``key``: from the computation under way, or from a new one made by ``start``.

        Raises what the computation raises. Cancelling the caller leaves the computation to the other waiters.
        """
        flight = self._flights.get(key)
        if flight is None:
            flight = Flight()
            flight.add(demand)
            self._flights[key] = flight
            flight.task = asyncio.create_task(start(flight))
            flight.task.add_done_callback(lambda task: self._landed(key, flight, task))
        else:
            flight.add(demand)
        assert flight.task is not None  # noqa: S101 - set in the branch that made the flight
        try:
            return await asyncio.shield(flight.task)
        finally:
            if flight.remove(demand) and not flight.task.done():
                # Nobody else may join a computation that is being cancelled.
                self._forget(key, flight)
                flight.task.cancel()

    def _landed(self, key: Hashable, flight: Flight[Value], task: asyncio.Task[Value]) -> None:
        self._forget(key, flight)
        if not task.cancelled():
            task.exception()  # Marks it as seen: the waiters may all have gone.

    def _forget(self, key: Hashable, flight: Flight[Value]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
