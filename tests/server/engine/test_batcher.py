from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from critiq.errors import CritiqError, DeadlineExceeded, Internal, InvalidArgument, TooBusy
from critiq_server.engine.batcher import BULK_TURN, Batcher, BatchReport
from critiq_server.engine.demand import Call, Priority
from tests.server.engine.devices import Device, expired, in_an_hour, occupied, queued, submit
from tests.support.waiting import until


async def test_an_idle_batcher_starts_at_once_without_company() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=8, max_queue=100)
    assert await batcher.submit("a", "one", in_an_hour()) == ("done", "a")
    assert device.batches == [["a"]]


async def test_a_batch_grows_while_the_device_is_busy() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=8, max_queue=100)
    first = await occupied(device, batcher)
    later = await queued(batcher, list(range(5)))
    device.release()
    assert await asyncio.gather(*later) == [("done", item) for item in range(5)]
    await asyncio.gather(*first)
    assert device.batches == [["busy 0"], [0, 1, 2, 3, 4]]


async def test_a_batch_never_exceeds_its_limit() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=3, max_queue=100)
    await occupied(device, batcher)
    tasks = await queued(batcher, list(range(10)))
    device.release()
    await asyncio.gather(*tasks)
    assert [len(batch) for batch in device.batches[1:]] == [3, 3, 3, 1]
    assert device.computed[1:] == list(range(10)), "first come, first served"


async def test_items_of_different_buckets_never_share_a_batch() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=8, max_queue=100)
    await occupied(device, batcher)
    tasks: list[asyncio.Task[Any]] = []
    for number in range(9):
        tasks += await queued(batcher, [(number % 3, number)], bucket=number % 3)
    device.release()
    await asyncio.gather(*tasks)
    assert [{bucket for bucket, _ in batch} for batch in device.batches[1:]] == [{0}, {1}, {2}]


async def test_interactive_work_goes_before_bulk_work() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=2, max_queue=100)
    await occupied(device, batcher)
    tasks = await queued(batcher, ["bulk 0", "bulk 1"], demand=in_an_hour(Priority.BULK))
    tasks += await queued(batcher, ["now 0", "now 1"])
    device.release()
    await asyncio.gather(*tasks)
    assert device.batches[1:] == [["now 0", "now 1"], ["bulk 0", "bulk 1"]]


async def test_bulk_work_fills_up_an_interactive_batch() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=4, max_queue=100)
    await occupied(device, batcher)
    tasks = await queued(batcher, ["bulk"], demand=in_an_hour(Priority.BULK))
    tasks += await queued(batcher, ["now"])
    device.release()
    await asyncio.gather(*tasks)
    assert device.batches[1:] == [["now", "bulk"]]


@pytest.mark.parametrize(
    ("flood", "lone"), [(Priority.INTERACTIVE, Priority.BULK), (Priority.BULK, Priority.INTERACTIVE)]
)
async def test_neither_priority_starves_under_a_flood_of_the_other(flood: Priority, lone: Priority) -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=1, max_queue=100)
    await occupied(device, batcher)
    tasks = await queued(batcher, [f"flood {number}" for number in range(20)], demand=in_an_hour(flood))
    tasks += await queued(batcher, ["lone"], demand=in_an_hour(lone))
    device.release()
    await asyncio.gather(*tasks)
    assert device.computed[1:].index("lone") <= BULK_TURN


async def test_cancelled_items_are_never_computed() -> None:
    device, dropped = Device(), []
    batcher = Batcher(device.compute, max_batch=8, max_queue=100, on_drop=dropped.append)
    await occupied(device, batcher)
    tasks = await queued(batcher, list(range(6)))
    for task in tasks[::2]:
        task.cancel()
    device.release()
    kept = await asyncio.gather(*tasks[1::2])
    assert kept == [("done", 1), ("done", 3), ("done", 5)]
    assert device.computed == ["busy 0", 1, 3, 5]
    assert sum(dropped) == 3


async def test_expired_items_are_never_computed() -> None:
    device, dropped = Device(), []
    batcher = Batcher(device.compute, max_batch=8, max_queue=100, on_drop=dropped.append)
    await occupied(device, batcher)
    late, good = await queued(batcher, ["late"], demand=expired()), await queued(batcher, ["good"])
    device.release()
    with pytest.raises(DeadlineExceeded):
        await late[0]
    assert await good[0] == ("done", "good")
    assert device.computed == ["busy 0", "good"]
    assert sum(dropped) == 1


async def test_an_item_that_is_late_already_is_refused_although_the_device_is_idle() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=8, max_queue=100)
    with pytest.raises(DeadlineExceeded):
        await batcher.submit("late", "one", expired())
    assert device.batches == []


async def test_a_deadline_counts_as_it_stands_when_the_batch_is_made() -> None:
    class Joined:
        priority = Priority.INTERACTIVE
        deadline = 0.0

    device, demand = Device(), Joined()
    batcher = Batcher(device.compute, max_batch=8, max_queue=100)
    await occupied(device, batcher)
    demand.deadline = asyncio.get_running_loop().time() - 1
    task = asyncio.ensure_future(batcher.submit("joined", "one", demand))
    await until(lambda: batcher.waiting == 1)
    demand.deadline += 3600  # somebody with more patience has joined
    device.release()
    assert await task == ("done", "joined")


async def test_a_full_queue_refuses_with_a_hint_and_keeps_what_it_has() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=8, max_queue=3)
    await occupied(device, batcher)
    tasks = await queued(batcher, [0, 1, 2])
    with pytest.raises(TooBusy, match="3 items waiting") as refusal:
        await batcher.submit(3, "one", in_an_hour())
    assert refusal.value.retry_after is not None
    assert 0 < refusal.value.retry_after <= 10
    device.release()
    assert await asyncio.gather(*tasks) == [("done", 0), ("done", 1), ("done", 2)]


async def test_the_places_of_those_who_left_are_free() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=8, max_queue=3)
    await occupied(device, batcher)
    tasks = await queued(batcher, [0, 1, 2])
    tasks[1].cancel()
    await asyncio.sleep(0)
    replacement = submit(batcher, 3)
    device.release()
    assert await replacement == ("done", 3)


async def test_a_batch_that_fails_fails_alone_and_hides_its_details() -> None:
    def compute(items: list[str]) -> list[str]:
        if "bad" in items:
            raise RuntimeError("secret detail")
        return items

    batcher = Batcher(compute, max_batch=1, max_queue=100)
    bad, good = submit(batcher, "bad"), submit(batcher, "good")
    with pytest.raises(Internal) as failure:
        await bad
    assert "secret" not in str(failure.value)
    assert await good == "good"
    assert await batcher.submit("again", "one", in_an_hour()) == "again"


async def test_an_items_own_error_leaves_its_neighbours_alone() -> None:
    gate = threading.Event()

    def compute(items: list[str]) -> list[str | CritiqError]:
        gate.wait(120)
        return [InvalidArgument("no good") if item == "bad" else item for item in items]

    batcher = Batcher(compute, max_batch=8, max_queue=100)
    first = submit(batcher, "first")
    await asyncio.sleep(0)
    rest = [submit(batcher, item) for item in ("a", "bad", "b")]
    await until(lambda: batcher.waiting == 3)
    gate.set()
    results = await asyncio.gather(first, *rest, return_exceptions=True)
    assert results[:2] == ["first", "a"]
    assert isinstance(results[2], InvalidArgument)
    assert results[3] == "b"


async def test_a_wrong_number_of_outputs_is_an_error_and_no_hang() -> None:
    batcher: Batcher[str, str] = Batcher(lambda items: items[:-1], max_batch=8, max_queue=100)
    async with asyncio.timeout(120):
        with pytest.raises(Internal):
            await batcher.submit("a", "one", in_an_hour())
        with pytest.raises(Internal):
            await batcher.submit("b", "one", in_an_hour())


async def test_max_delay_lets_an_idle_device_wait_for_company_but_not_for_ever() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=8, max_queue=100, max_delay=0.2)
    loop = asyncio.get_running_loop()
    started = loop.time()
    first = submit(batcher, "a")
    await asyncio.sleep(0.01)
    second = submit(batcher, "b")
    await asyncio.gather(first, second)
    assert device.batches == [["a", "b"]]
    assert loop.time() - started >= 0.19


async def test_max_delay_does_not_hold_a_full_batch() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=2, max_queue=100, max_delay=1000.0)
    async with asyncio.timeout(120):
        assert await asyncio.gather(submit(batcher, "a"), submit(batcher, "b")) == [("done", "a"), ("done", "b")]


async def test_closing_refuses_what_waits_and_answers_what_is_computed() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=8, max_queue=100)
    running = await occupied(device, batcher)
    waiting = await queued(batcher, [0, 1])
    closing = asyncio.ensure_future(batcher.close())
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert all(isinstance(result, TooBusy) and result.retry_after for result in results)
    assert not closing.done()
    device.release()
    assert await running[0] == ("done", "busy 0")
    await closing
    async with asyncio.timeout(120):
        with pytest.raises(TooBusy):
            await batcher.submit("late", "one", in_an_hour())


async def test_idle_workers_share_what_waits() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=8, max_queue=100, workers=2)
    await occupied(device, batcher)
    tasks = await queued(batcher, list(range(8)))
    device.let_go(2)
    # Whichever worker frees itself first takes its share: what waits over the workers that are idle then.
    await until(lambda: len(device.computed) == 2 + 8)
    device.release()
    assert await asyncio.gather(*tasks) == [("done", item) for item in range(8)]


async def test_two_idle_workers_split_a_burst() -> None:
    device = Device(held=True)
    batcher = Batcher(device.compute, max_batch=8, max_queue=100, workers=2)
    tasks = [submit(batcher, item) for item in range(2)]
    await until(lambda: len(device.batches) == 2)
    device.release()
    await asyncio.gather(*tasks)
    assert sorted(map(len, device.batches)) == [1, 1]


async def test_reports_tell_size_and_times() -> None:
    reports: list[BatchReport] = []
    device = Device()
    batcher = Batcher(device.compute, max_batch=8, max_queue=100, on_batch=reports.append)
    first = await occupied(device, batcher)
    tasks = await queued(batcher, [0, 1, 2])
    await asyncio.sleep(0.05)
    device.release()
    await asyncio.gather(*first, *tasks)
    await until(lambda: len(reports) == 2)
    assert [report.size for report in reports] == [1, 3]
    assert reports[0].compute_seconds >= 0.05
    assert all(seconds >= 0.05 for seconds in reports[1].queue_seconds)
    assert len(reports[1].queue_seconds) == 3


async def test_the_expected_wait_follows_the_rate() -> None:
    device = Device()
    batcher = Batcher(device.compute, max_batch=1, max_queue=1000)
    assert batcher.expected_wait() > 0
    await asyncio.gather(*(submit(batcher, item) for item in range(20)))
    await occupied(device, batcher)
    short = batcher.expected_wait()
    tasks = await queued(batcher, list(range(500)))
    assert short <= batcher.expected_wait() <= 10
    for task in tasks:
        task.cancel()
    device.release()


def test_calls_are_compared_by_identity() -> None:
    assert Call(1.0) != Call(1.0), "two callers with one deadline are two callers"
