from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq_server.engine.demand import Call, Priority
from critiq_server.engine.flights import Flight, Flights
from tests.support.waiting import until


class Work:
    """A computation that ends when the test says so."""

    def __init__(self) -> None:
        self.starts: list[Flight[Any]] = []
        self.cancelled = 0
        self.go = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self, flight: Flight[Any]) -> str:
        self.starts.append(flight)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.error is not None:
            raise self.error
        return f"value {len(self.starts)}"


def joining(flights: Flights[Any], work: Work, demand: Call | None = None, key: str = "key") -> asyncio.Task[Any]:
    return asyncio.ensure_future(flights.join(key, demand or Call(1.0), work))


async def test_callers_of_one_key_share_one_computation() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    tasks = [joining(flights, work) for _ in range(5)]
    await until(lambda: len(work.starts) == 1)
    work.go.set()
    assert await asyncio.gather(*tasks) == ["value 1"] * 5
    await until(lambda: len(flights) == 0)


async def test_different_keys_are_computed_each() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    tasks = [joining(flights, work, key=key) for key in ("a", "b")]
    await until(lambda: len(work.starts) == 2)
    assert len(flights) == 2
    work.go.set()
    await asyncio.gather(*tasks)


async def test_what_has_landed_is_computed_anew() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    work.go.set()
    assert await joining(flights, work) == "value 1"
    assert await joining(flights, work) == "value 2"


async def test_a_flight_is_as_urgent_and_as_patient_as_any_of_its_waiters() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    tasks = [joining(flights, work, Call(5.0, Priority.BULK))]
    await until(lambda: len(work.starts) == 1)
    flight = work.starts[0]
    assert (flight.deadline, flight.priority) == (5.0, Priority.BULK)
    tasks.append(joining(flights, work, Call(9.0, Priority.BULK)))
    tasks.append(joining(flights, work, Call(2.0, Priority.INTERACTIVE)))
    await asyncio.sleep(0)
    assert (flight.deadline, flight.priority) == (9.0, Priority.INTERACTIVE)
    tasks[2].cancel()
    await asyncio.gather(tasks[2], return_exceptions=True)
    assert (flight.deadline, flight.priority) == (9.0, Priority.BULK)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    assert flight.deadline == 5.0
    work.go.set()
    assert await tasks[0] == "value 1"


async def test_the_last_waiter_to_leave_cancels_the_computation() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    tasks = [joining(flights, work) for _ in range(2)]
    await until(lambda: len(work.starts) == 1)
    tasks[0].cancel()
    await asyncio.gather(tasks[0], return_exceptions=True)
    assert work.cancelled == 0
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    await until(lambda: work.cancelled == 1)
    assert len(flights) == 0


async def test_nobody_joins_a_computation_that_is_being_cancelled() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    first = joining(flights, work)
    await until(lambda: len(work.starts) == 1)
    first.cancel()
    second = joining(flights, work)
    await until(lambda: len(work.starts) == 2)
    work.go.set()
    assert await second == "value 2"


async def test_every_waiter_gets_the_error_and_the_next_one_a_new_try() -> None:
    flights: Flights[str] = Flights()
    work = Work()
    work.error = ValueError("broken")
    tasks = [joining(flights, work) for _ in range(3)]
    work.go.set()
    for task in tasks:
        with pytest.raises(ValueError, match="broken"):
            await task
    work.error = None
    assert await joining(flights, work) == "value 2"


async def test_nested_flights_let_go_of_what_they_needed() -> None:
    flights: Flights[str] = Flights()
    inner = Work()

    async def outer(flight: Flight[Any]) -> str:
        return str(await flights.join("inner", flight, inner))

    task = asyncio.ensure_future(flights.join("outer", Call(7.0), outer))
    await until(lambda: len(inner.starts) == 1)
    assert inner.starts[0].deadline == 7.0, "the demand is passed on"
    task.cancel()
    await until(lambda: inner.cancelled == 1)
    assert len(flights) == 0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.booleans()), max_size=25), st.integers(0, 6))
def test_whoever_stays_gets_the_value_of_the_key(plan: list[tuple[int, int, bool]], effort: int) -> None:
    async def run() -> None:
        flights: Flights[int] = Flights()
        under_way: set[int] = set()

        async def compute(key: int) -> int:
            assert key not in under_way, "one computation a key at a time"
            under_way.add(key)
            try:
                for _ in range(effort):
                    await asyncio.sleep(0)
                return key * 10
            finally:
                under_way.discard(key)

        tasks = []
        for key, turns, leaves in plan:
            task = asyncio.ensure_future(flights.join(key, Call(1.0), lambda _, key=key: compute(key)))  # type: ignore[misc]
            tasks.append(task)
            for _ in range(turns):
                await asyncio.sleep(0)
            if leaves:
                task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        for (key, _, leaves), outcome in zip(plan, outcomes, strict=True):
            assert outcome == key * 10 or (leaves and isinstance(outcome, asyncio.CancelledError))
        await until(lambda: len(flights) == 0)

    asyncio.run(run())
