"""Several processes' views of one store of counts give together what the rules say of one; all in this process."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from critiq.errors import TooBusy
from critiq_server.security.counts_file import Store, open_store
from critiq_server.security.keys import Key, new_key
from critiq_server.security.limits import Allowance
from critiq_server.security.shared_counts import SharedCounts
from tests.server.security.test_keys import Clock

pytestmark = pytest.mark.skipif(os.name == "nt", reason="counts are shared on Linux and macOS")

DAY = 86_400


def handle(environment: lmdb.Environment, directory: Path, *alive: SharedCounts) -> SharedCounts:
    """One process's view; LMDB lets a process open an environment once only."""
    counts = SharedCounts(directory)
    counts._store = Store(environment, directory, [store(one).owner.hex() for one in alive])
    return counts


def store(counts: SharedCounts) -> Store:
    assert counts._store is not None
    return counts._store


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[lmdb.Environment, Path]]:
    directory = tmp_path_factory.mktemp("counts")
    opened = open_store(directory)
    yield opened.environment, directory
    opened.close()


class Reference:
    """What one key may do, told as simply as can be: by the rules, not by the code that serves."""

    def __init__(self, rate: float | None, concurrency: int | None, per_day: int | None, now: float) -> None:
        self.rate, self.concurrency, self.per_day = rate, concurrency, per_day
        self.tokens, self.filled = max(1.0, rate or 1.0), now
        self.days: OrderedDict[int, int] = OrderedDict()
        self.under_way: list[int] = []
        """The process of each call."""

    def spend(self, now: float, wall: float) -> bool:
        day = int(wall // DAY)
        self.days.setdefault(day, 0)
        self.days.move_to_end(day)
        while len(self.days) > 2:
            self.days.popitem(last=False)
        if self.per_day is not None and self.days[day] >= self.per_day:
            return False
        if self.rate is not None:
            self.tokens = min(max(1.0, self.rate), self.tokens + (now - self.filled) * self.rate)
            self.filled = now
            if self.tokens < 1:
                return False
            self.tokens -= 1
        self.days[day] += 1
        return True

    def enter(self, process: int) -> bool:
        if self.concurrency is not None and len(self.under_way) >= self.concurrency:
            return False
        self.under_way.append(process)
        return True


PROCESSES = 3
process = st.integers(0, PROCESSES - 1)
# Times are sums of quarters, so that no rounding decides whether a call comes too early.
steps = st.one_of(
    st.tuples(st.just("spend"), process),
    st.tuples(st.sampled_from(["enter", "enter", "leave"]), process),
    st.tuples(st.just("wait"), st.sampled_from([0.25, 0.5, 3.0, 40_000.0])),
    st.tuples(st.just("set the clock"), st.sampled_from([-DAY, DAY, DAY, 5 * DAY])),
    st.tuples(st.just("kill"), process),
)


@settings(max_examples=100, deadline=None)
@given(
    rate=st.sampled_from([None, 0.5, 2.0, 8.0]),
    concurrency=st.sampled_from([None, 1, 3]),
    per_day=st.sampled_from([None, 2, 5]),
    played=st.lists(steps, min_size=30, max_size=60),
)
def test_processes_together_give_what_one_gives(
    shared: tuple[lmdb.Environment, Path],
    rate: float | None,
    concurrency: int | None,
    per_day: int | None,
    played: list[tuple[str, Any]],
) -> None:
    # In a context that nobody uses after it: calls of processes that are killed do not end.
    copy_context().run(play, shared, new_key("caller", ["score"], rate, concurrency, per_day)[1], played)


def play(shared: tuple[lmdb.Environment, Path], key: Key, played: list[tuple[str, Any]]) -> None:
    monotonic, wall = Clock(1000.0), Clock(20_000.0 * DAY + 80_000.0)
    reference = Reference(key.requests_per_second, key.concurrency, key.requests_per_day, monotonic.now)
    views: list[SharedCounts] = []
    for _ in range(PROCESSES):
        views.append(handle(*shared, *views))
    allowances = [Allowance(key, view, monotonic, wall) for view in views]
    calls: list[list[AbstractContextManager[None]]] = [[] for _ in views]

    def accepted(action: Any) -> bool:
        try:
            action()
        except TooBusy:
            return False
        return True

    try:
        for what, value in played:
            if what == "spend":
                assert accepted(allowances[value].spend) == reference.spend(monotonic.now, wall.now)
            elif what == "enter":
                call = allowances[value].call()
                room, entered = accepted(allowances[value].check_room), accepted(call.__enter__)
                assert room == entered == reference.enter(value)
                if entered:
                    calls[value].append(call)
            elif what == "leave" and calls[value]:
                calls[value].pop().__exit__(None, None, None)
                reference.under_way.remove(value)
            elif what == "wait":
                monotonic.now += value
                wall.now += value
            elif what == "set the clock":
                wall.now += value
            elif what == "kill":
                os.close(store(views[value])._alive)
                views[value]._store = None  # nothing that ends later is counted
                views[value] = handle(*shared, *(view for view in views if view is not views[value]))
                allowances[value] = Allowance(key, views[value], monotonic, wall)
                calls[value], reference.under_way = [], [one for one in reference.under_way if one != value]
    finally:
        for call in (call for entered in calls for call in entered):
            call.__exit__(None, None, None)
        for view in views:
            os.close(store(view)._alive)
