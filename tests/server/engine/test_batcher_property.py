"""Whatever comes in whatever order: every submit ends exactly once, with its own result or a definite refusal."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from critiq.errors import CritiqError, DeadlineExceeded, Internal, InvalidArgument, TooBusy
from critiq_server.engine.batcher import Batcher
from critiq_server.engine.demand import Call, Priority


@dataclass(frozen=True)
class Arrival:
    bucket: int
    priority: Priority
    patience: float
    """Seconds until the deadline; negative: late already."""
    cancel_after: int | None
    """Event-loop turns after which the caller leaves."""
    pause: int
    """Event-loop turns before the next arrival."""
    fate: str


arrivals = st.lists(
    st.builds(
        Arrival,
        bucket=st.integers(0, 2),
        priority=st.sampled_from(Priority),
        patience=st.sampled_from([-1.0, 3600.0, 3600.0, 3600.0]),
        cancel_after=st.one_of(st.none(), st.none(), st.integers(0, 8)),
        pause=st.integers(0, 3),
        fate=st.sampled_from(["good"] * 8 + ["error", "raise"]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(arrivals, st.integers(1, 5), st.integers(1, 12), st.integers(1, 3), st.sampled_from([0.0, 0.002]))
def test_every_submit_ends_once_with_its_own_outcome(
    plan: list[Arrival], max_batch: int, max_queue: int, workers: int, max_delay: float
) -> None:
    asyncio.run(_run(plan, max_batch, max_queue, workers, max_delay))


async def _run(plan: list[Arrival], max_batch: int, max_queue: int, workers: int, max_delay: float) -> None:
    batches: list[list[tuple[int, Arrival]]] = []

    def compute(items: list[tuple[int, Arrival]]) -> list[int | CritiqError]:
        batches.append(items)
        if any(arrival.fate == "raise" for _, arrival in items):
            raise RuntimeError("the device failed")
        return [InvalidArgument("bad item") if arrival.fate == "error" else number for number, arrival in items]

    loop = asyncio.get_running_loop()
    batcher: Batcher[tuple[int, Arrival], int] = Batcher(compute, max_batch, max_queue, workers, max_delay)
    tasks: list[asyncio.Task[int]] = []
    for number, arrival in enumerate(plan):
        demand = Call(loop.time() + arrival.patience, arrival.priority)
        task = asyncio.ensure_future(batcher.submit((number, arrival), arrival.bucket, demand))
        tasks.append(task)
        if arrival.cancel_after is not None:
            asyncio.ensure_future(_cancel(task, arrival.cancel_after))  # noqa: RUF006 - awaited through its effect
        for _ in range(arrival.pause):
            await asyncio.sleep(0)
    async with asyncio.timeout(120):
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await batcher.close()

    computed = Counter(number for batch in batches for number, _ in batch)
    assert all(count == 1 for count in computed.values()), "nothing is computed twice"
    assert all(len(batch) <= max_batch for batch in batches)
    assert all(len({arrival.bucket for _, arrival in batch}) == 1 for batch in batches)
    together = {number: batch for batch in batches for number, _ in batch}
    for number, (arrival, outcome) in enumerate(zip(plan, outcomes, strict=True)):
        _check(number, arrival, outcome, together.get(number))


def _check(number: int, arrival: Arrival, outcome: Any, batch: list[tuple[int, Arrival]] | None) -> None:
    if isinstance(outcome, asyncio.CancelledError):
        assert arrival.cancel_after is not None
    elif isinstance(outcome, TooBusy):
        assert batch is None
    elif isinstance(outcome, DeadlineExceeded):
        assert batch is None
        assert arrival.patience < 0
    else:
        assert batch is not None
        assert arrival.patience > 0, "what is late is not computed"
        if any(neighbour.fate == "raise" for _, neighbour in batch):
            assert isinstance(outcome, Internal)
        elif arrival.fate == "error":
            assert isinstance(outcome, InvalidArgument)
        else:
            assert outcome == number


async def _cancel(task: asyncio.Task[int], turns: int) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
