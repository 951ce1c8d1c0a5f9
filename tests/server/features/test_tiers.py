"""Disk over network, seen from the engine: one look-up a turn, upper tiers filled, failures nobody's problem."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import pytest

from critiq_server.features import tiers
from critiq_server.features.keys import Key
from critiq_server.features.records import Features
from critiq_server.features.store import StoreError
from critiq_server.features.tiers import LowerTiers, Report, Tier
from tests.server.features.entries import assert_same, entries, features, key
from tests.support.waiting import until


class FakeStore:
    """A dictionary that notes what it is asked, and fails or waits on request."""

    def __init__(self, content: Mapping[Key, Features] | None = None) -> None:
        self.content = dict(content or {})
        self.gets: list[list[Key]] = []
        self.puts: list[list[Key]] = []
        self.failing: Exception | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.closed = False

    async def get_many(self, keys: Iterable[Key]) -> dict[Key, Features]:
        keys = list(keys)
        self.gets.append(keys)
        await self.go.wait()
        if self.failing is not None:
            raise self.failing
        return {name: self.content[name] for name in keys if name in self.content}

    async def put_many(self, entries: Mapping[Key, Features]) -> None:
        self.puts.append(list(entries))
        await self.go.wait()
        if self.failing is not None:
            raise self.failing
        self.content.update(entries)

    async def close(self) -> None:
        self.closed = True


class Bench:
    def __init__(self, disk: FakeStore, network: FakeStore, *, writable: bool = True) -> None:
        self.reports: list[Report] = []
        self.disk = Tier("disk", disk, writable=writable)
        self.network = Tier("network", network)
        self.tiers = LowerTiers([self.disk, self.network], self.reports.append)

    def outcomes(self, tier: str, operation: str) -> list[tuple[int, int, str]]:
        return [
            (report.asked, report.done, "skipped" if report.skipped else "failed" if report.failed else "")
            for report in self.reports
            if (report.tier, report.operation) == (tier, operation)
        ]


async def test_the_nearest_tier_answers() -> None:
    disk, network = FakeStore(entries(1)), FakeStore(entries(1, 2))
    bench = Bench(disk, network)
    found = await asyncio.gather(*(bench.tiers.get(key(number)) for number in (1, 2, 3)))
    assert_same({key(1): found[0] or {}, key(2): found[1] or {}}, entries(1, 2))
    assert found[2] is None
    assert disk.gets == [[key(1), key(2), key(3)]]
    assert network.gets == [[key(2), key(3)]]


async def test_lookups_of_one_turn_go_as_one_and_each_key_once() -> None:
    disk = FakeStore(entries(*range(10)))
    bench = Bench(disk, FakeStore())
    found = await asyncio.gather(*(bench.tiers.get(key(number % 10)) for number in range(100)))
    assert len(disk.gets) == 1
    assert len(disk.gets[0]) == 10
    assert all(features is not None for features in found)


async def test_a_hit_further_down_fills_what_is_above() -> None:
    disk, network = FakeStore(), FakeStore(entries(1))
    bench = Bench(disk, network)
    assert await bench.tiers.get(key(1)) is not None
    await until(lambda: key(1) in disk.content)
    assert await bench.tiers.get(key(1)) is not None
    assert len(network.gets) == 1
    assert not network.puts


async def test_a_disk_that_is_read_only_is_never_written() -> None:
    disk, network = FakeStore(), FakeStore(entries(1))
    bench = Bench(disk, network, writable=False)
    await bench.tiers.get(key(1))
    bench.tiers.put(key(2), features(2))
    await until(lambda: key(2) in network.content)
    await bench.tiers.close()
    assert not disk.puts


async def test_what_comes_while_a_tier_writes_is_written_as_one() -> None:
    disk, network = FakeStore(), FakeStore()
    bench = Bench(disk, network)
    disk.go.clear()
    for number in range(5):
        bench.tiers.put(key(number), features(number))
        await asyncio.sleep(0)
    await until(lambda: len(network.content) == 5)  # a slow disk does not hold the network up
    disk.go.set()
    await until(lambda: len(disk.content) == 5)
    assert [len(keys) for keys in disk.puts] == [1, 4]


async def test_what_waits_to_be_written_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiers, "MAX_UNWRITTEN_BYTES", 3 * 256)
    disk, network = FakeStore(), FakeStore()
    bench = Bench(disk, network)
    disk.go.clear()
    network.go.clear()
    bench.tiers.put(key(0), features(0))
    await until(lambda: bool(disk.puts))
    for number in range(1, 10):
        bench.tiers.put(key(number), features(number))
    assert bench.outcomes("disk", "put") == [(1, 0, "skipped")] * 6
    disk.go.set()
    await until(lambda: len(disk.content) == 4)


async def test_a_tier_that_fails_is_left_alone_for_a_while_and_then_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr(tiers.time, "monotonic", lambda: now[0])
    disk, network = FakeStore(), FakeStore(entries(1))
    disk.failing = StoreError("the disk is on fire")
    bench = Bench(disk, network)
    for _ in range(3):
        assert await bench.tiers.get(key(1)) is not None  # from the network
    assert len(disk.gets) == 1
    assert bench.outcomes("disk", "get") == [(1, 0, "failed"), (1, 0, "skipped"), (1, 0, "skipped")]
    now[0] += 1.1
    await bench.tiers.get(key(1))
    assert len(disk.gets) == 2
    now[0] += 1.1  # twice as long after a second failure
    await bench.tiers.get(key(1))
    assert len(disk.gets) == 2
    now[0] += 1.0
    disk.failing = None
    await bench.tiers.get(key(1))
    await bench.tiers.get(key(1))
    assert len(disk.gets) == 4


async def test_a_bug_in_a_store_is_a_miss() -> None:
    disk, network = FakeStore(), FakeStore()
    disk.failing = network.failing = ZeroDivisionError()
    bench = Bench(disk, network)
    assert await bench.tiers.get(key(1)) is None
    bench.tiers.put(key(1), features(1))
    assert bench.outcomes("network", "put") == [(1, 0, "skipped")]


async def test_who_gives_up_waiting_takes_nothing_from_the_others() -> None:
    disk = FakeStore(entries(1))
    bench = Bench(disk, FakeStore())
    disk.go.clear()
    first = asyncio.ensure_future(bench.tiers.get(key(1)))
    second = asyncio.ensure_future(bench.tiers.get(key(1)))
    await until(lambda: bool(disk.gets))
    first.cancel()
    disk.go.set()
    assert await second is not None
    await asyncio.wait([first])
    assert first.cancelled()


async def test_nothing_is_looked_up_for_those_who_left_at_once() -> None:
    disk = FakeStore()
    bench = Bench(disk, FakeStore())
    waiting = asyncio.ensure_future(bench.tiers.get(key(1)))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0.01)
    assert not disk.gets


async def test_closing_writes_what_waits() -> None:
    disk, network = FakeStore(), FakeStore()
    bench = Bench(disk, network)
    for number in range(3):
        bench.tiers.put(key(number), features(number))
    await bench.tiers.close()
    assert len(disk.content) == len(network.content) == 3
    assert disk.closed
    assert network.closed


async def test_closing_does_not_wait_for_ever() -> None:
    disk, network = FakeStore(), FakeStore()
    bench = Bench(disk, network)
    disk.go.clear()
    bench.tiers.put(key(1), features(1))
    await asyncio.wait_for(bench.tiers.close(seconds=0.05), 120)
    assert disk.closed
