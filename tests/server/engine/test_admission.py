from __future__ import annotations

import asyncio
from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from critiq.errors import Stopping, TooBusy
from critiq_server.engine.admission import Admission
from tests.support.waiting import until


async def test_admits_up_to_its_limit_and_then_refuses_with_numbers_and_a_hint() -> None:
    admission = Admission(max_items=3, max_bytes=100)
    with admission.admit(2, 10), admission.admit(1, 10):
        with pytest.raises(TooBusy, match="3 pictures") as refusal, admission.admit(1, 1):
            pass
        assert refusal.value.retry_after is not None
        assert 0 < refusal.value.retry_after <= 10
        assert (admission.items, admission.bytes) == (3, 20)
    assert (admission.items, admission.bytes) == (0, 0)


async def test_a_place_is_free_again_after_a_failure() -> None:
    admission = Admission(max_items=1, max_bytes=100)
    with pytest.raises(ValueError, match="work failed"), admission.admit(1, 1):
        raise ValueError("work failed")
    with admission.admit(1, 1):
        pass


async def test_bytes_are_bounded_but_a_single_large_request_passes_alone() -> None:
    admission = Admission(max_items=10, max_bytes=100)
    with admission.admit(1, 500), pytest.raises(TooBusy), admission.admit(1, 1):
        pass
    with admission.admit(1, 60), pytest.raises(TooBusy), admission.admit(1, 41):
        pass
    with admission.admit(1, 60), admission.admit(1, 40):
        pass


async def test_closing_refuses_newcomers_and_waits_for_the_accepted() -> None:
    admission = Admission(max_items=2, max_bytes=100)
    drained = asyncio.ensure_future(admission.drained())
    await drained
    with ExitStack() as stack:
        stack.enter_context(admission.admit(1, 1))
        admission.close()
        drained = asyncio.ensure_future(admission.drained())
        with pytest.raises(Stopping) as refusal, admission.admit(1, 1):
            pass
        assert refusal.value.retry_after
        await asyncio.sleep(0)
        assert not drained.done()
    await drained


async def test_those_who_wait_for_room_are_woken() -> None:
    admission = Admission(max_items=1, max_bytes=100)
    with admission.admit(1, 1):
        waiter = asyncio.ensure_future(admission.room(1))
        await asyncio.sleep(0)
        assert not waiter.done()
    await asyncio.wait_for(waiter, 120)


async def test_everybody_who_has_room_is_woken_at_once() -> None:
    admission = Admission(max_items=8, max_bytes=1000)
    inside = 0

    async def enter(leave: asyncio.Event) -> None:
        nonlocal inside
        await admission.room(1)
        with admission.admit(1, 1):
            inside += 1
            await leave.wait()

    leave = asyncio.Event()
    with admission.admit(8, 8):
        tasks = [asyncio.ensure_future(enter(leave)) for _ in range(8)]
        await asyncio.sleep(0)
        assert inside == 0
    await until(lambda: inside == 8)
    leave.set()
    await asyncio.gather(*tasks)


async def test_bytes_that_become_free_let_several_in() -> None:
    admission = Admission(max_items=8, max_bytes=100)
    leave = asyncio.Event()
    inside = 0

    async def enter() -> None:
        nonlocal inside
        await admission.room(40)
        with admission.admit(1, 40):
            inside += 1
            await leave.wait()

    with admission.admit(1, 90):
        tasks = [asyncio.ensure_future(enter()) for _ in range(2)]
        await asyncio.sleep(0)
    await until(lambda: inside == 2)
    leave.set()
    await asyncio.gather(*tasks)


async def test_a_waiter_that_leaves_passes_its_turn_on() -> None:
    admission = Admission(max_items=1, max_bytes=100)
    with admission.admit(1, 1):
        first, second = (asyncio.ensure_future(admission.room(1)) for _ in range(2))
        await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait_for(second, 120)


async def test_closing_wakes_all_who_wait() -> None:
    admission = Admission(max_items=1, max_bytes=100)
    with admission.admit(1, 1):
        waiters = [asyncio.ensure_future(admission.room(1)) for _ in range(3)]
        await asyncio.sleep(0)
        admission.close()
        await asyncio.wait_for(asyncio.gather(*waiters), 120)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 60), st.booleans()), max_size=40))
def test_what_is_under_way_never_exceeds_the_limits(plan: list[tuple[int, int, bool]]) -> None:
    seen: list[tuple[int, int]] = []
    admission = Admission(max_items=6, max_bytes=100, on_change=lambda items, size: seen.append((items, size)))
    inside: list[ExitStack] = []
    for items, size, leave in plan:
        if leave and inside:
            inside.pop(0).close()
        stack = ExitStack()
        try:
            stack.enter_context(admission.admit(items, size))
            inside.append(stack)
        except TooBusy:
            assert admission.items + items > 6 or admission.bytes + size > 100
    for stack in inside:
        stack.close()
    assert all(items <= 6 and size <= 100 for items, size in seen)
    assert (admission.items, admission.bytes) == (0, 0)
