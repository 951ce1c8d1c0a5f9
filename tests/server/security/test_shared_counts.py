"""Limits that several processes count together: several views of one environment here, and a process that is killed."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import copy_context
from pathlib import Path
from typing import Any

import lmdb
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from critiq.errors import TooBusy
from critiq_server.listening import StartError
from critiq_server.security import counts_file, shared_counts
from critiq_server.security.counts_file import Store, open_store
from critiq_server.security.guard import Guard
from critiq_server.security.keys import Caller, Key, append, new_key
from critiq_server.security.limits import Allowance
from critiq_server.security.settings import SecuritySettings
from critiq_server.security.shared_counts import SharedCounts
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.skipif(os.name == "nt", reason="counts are shared on Linux and macOS")

DAY = 86_400


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


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


async def opened(directory: Path) -> SharedCounts:
    counts = SharedCounts(directory)
    await counts.open()
    return counts


async def test_what_is_spent_outlives_the_process_and_the_machine(tmp_path: Path) -> None:
    key = new_key("caller", ["score"], 4.0, 1, 6)[1]
    wall = Clock(20_000.0 * DAY)
    counts = await opened(tmp_path)
    before = Allowance(key, counts, Clock(5000.0), wall)
    for _ in range(4):
        before.spend()
    before.call().__enter__()  # and never ends
    counts.close()

    counts = await opened(tmp_path)
    after = Allowance(key, counts, monotonic := Clock(10.0), wall)  # the machine was started anew
    after.check_room()
    with pytest.raises(TooBusy, match="4 requests a second"):
        after.spend()
    monotonic.now += 0.5
    after.spend()
    after.spend()
    monotonic.now += 1
    with pytest.raises(TooBusy, match="6 requests of this day"):
        after.spend()
    wall.now += DAY
    after.spend()
    counts.close()


@contextmanager
def another_process(directory: Path, key: Key) -> Iterator[subprocess.Popen[str]]:
    """It has two calls under way and is about to write."""
    script = f"""
import asyncio, sys
from pathlib import Path
from critiq_server.security.keys import Key
from critiq_server.security.limits import Allowance
from critiq_server.security.shared_counts import SharedCounts
counts = SharedCounts(Path({str(directory)!r}))
asyncio.run(counts.open())
allowance = Allowance(Key.model_validate({key.model_dump()!r}), counts)
calls = [allowance.call(), allowance.call()]
for call in calls:
    call.__enter__()
transaction = counts._store.environment.begin(counts._store.spent, write=True)
transaction.put(b"half", b"done")
print("writes", flush=True)
sys.stdin.read()
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "writes\n"
        yield other
    finally:
        other.kill()
        other.communicate()


async def test_calls_of_a_process_that_is_gone_are_forgotten(tmp_path: Path) -> None:
    """It is killed while it answers two calls, and while it writes."""
    key = new_key("caller", ["score"], requests_per_day=10, concurrency=2)[1]
    counts = await opened(tmp_path)
    here = Allowance(key, counts)
    with another_process(tmp_path, key) as other:
        await counts.look()  # it is alive
        with pytest.raises(TooBusy, match="2 calls under way"):
            here.check_room()
        other.send_signal(signal.SIGKILL)
        other.wait()
        here.spend()
        await counts.look()
    with here.call(), here.call(), pytest.raises(TooBusy):
        here.check_room()
    assert counts_file._alive(tmp_path) == {store(counts).owner.hex()}
    counts.close()


async def test_a_call_that_ends_as_garbage_while_another_is_counted_is_counted_too(tmp_path: Path) -> None:
    """Garbage is collected at any time; a transaction within another one would fail, or wait for ever."""
    counts = await opened(tmp_path)
    key = new_key("caller", ["score"], 100.0, 1)[1]

    def collecting() -> float:
        gc.collect()
        return 0.0

    allowance = Allowance(key, counts, collecting)
    cycle: list[Any] = [allowance.call()]
    cycle[0].__enter__()
    cycle.append(cycle)
    del cycle
    with capture_logs() as lines:
        allowance.spend()
    assert lines == []
    assert store(counts)._calls_under_way() == []
    allowance.check_room()
    counts.close()


def guard_of(path: Path, directory: Path) -> Guard:
    return Guard(SecuritySettings(keys_file=path, limits_directory=directory), path)


def write(path: Path, *keys: Key) -> None:
    path.write_text(yaml.safe_dump([key.model_dump(mode="json") for key in keys]))


async def test_keys_that_are_renamed_removed_and_come_back_have_spent_what_they_spent(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    text, key = new_key("before", ["score"], requests_per_day=3)
    write(path, key)
    guard = guard_of(path, tmp_path / "counts")
    await guard.open()
    guard.admit(text, {"score"}, "call")
    write(path, key.model_copy(update={"name": "after", "concurrency": 5}))
    guard.look()
    guard.admit(text, {"score"}, "call")
    write(path)
    guard.look()
    write(path, key)
    guard.look()
    guard.admit(text, {"score"}, "call")
    with pytest.raises(TooBusy, match="3 requests"):
        guard.admit(text, {"score"}, "call")
    guard.close()
    guard = guard_of(path, tmp_path / "counts")
    await guard.open()
    with pytest.raises(TooBusy, match="3 requests"):
        guard.admit(text, {"score"}, "call")
    guard.close()


async def test_of_many_callers_those_seen_last_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_counts, "_MOST_CALLERS", 100)
    monkeypatch.setattr(counts_file, "_AT_ONCE", 16)
    counts = await opened(tmp_path)
    wall = Clock(20_000.0 * DAY)

    def bearer(number: int) -> Allowance:
        return Allowance(Caller(name=f"jwt:{number}", scopes=("score",), requests_per_day=1), counts, wall=wall)

    for number in range(250):
        wall.now += 1
        bearer(number).spend()
    await counts.look()
    assert store(counts)._callers() == 90
    for number in range(160, 250):
        with pytest.raises(TooBusy):
            bearer(number).spend()
    bearer(159).spend()
    counts.close()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process grows; it needs no rights."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def test_a_full_disk_leaves_each_process_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_counts, "_PAUSE_SECONDS", 0.0)
    counts = await opened(tmp_path)
    wall = Clock(20_000.0 * DAY)
    key = new_key("caller", ["score"], requests_per_day=4, concurrency=1)[1]
    allowance = Allowance(key, counts, wall=wall)
    allowance.spend()
    call = allowance.call()
    call.__enter__()
    with capture_logs() as lines:
        with full_disk():
            allowance.spend()
            allowance.spend()
            await counts.look()
        with pytest.raises(TooBusy, match="1 calls under way"):
            allowance.check_room()
        allowance.spend()
        with pytest.raises(TooBusy, match="4 requests of this day"):
            allowance.spend()
    assert [line["log_level"] for line in lines] == ["warning"]
    assert "this process alone" in lines[0]["event"]
    with capture_logs() as lines:
        await counts.look()
        await counts.look()
    assert [line["event"] for line in lines] == ["the limits of callers hold over all processes again"]
    allowance.change(key.model_copy(update={"concurrency": 2}))
    with allowance.call():
        call.__exit__(None, None, None)  # it began before the disk was full
        assert len(store(counts)._calls_under_way()) == 1
    assert store(counts)._calls_under_way() == []
    counts.close()


async def test_a_disk_that_is_full_at_the_start_is_no_reason_not_to_serve(tmp_path: Path) -> None:
    with capture_logs() as lines, full_disk():
        (tmp_path / "data.mdb").touch()
        counts = await opened(tmp_path)
    assert [line["log_level"] for line in lines] == ["warning"]
    Allowance(new_key("caller", ["score"], requests_per_day=4)[1], counts).spend()
    counts._failed_at = float("-inf")
    await counts.look()
    store(counts)
    counts.close()


@pytest.mark.parametrize("harm", ["rubbish", "cut short", "pages of another age"])
async def test_a_damaged_file_is_put_aside(tmp_path: Path, harm: str) -> None:
    counts = await opened(tmp_path)
    keys = [new_key("caller", ["score"], requests_per_day=1)[1] for _ in range(300)]
    for key in keys:
        Allowance(key, counts).spend()
    counts.close()
    file = tmp_path / "data.mdb"
    data = file.read_bytes()
    file.write_bytes(
        {
            "rubbish": b"\x17" * len(data),
            "cut short": data[: len(data) // 2],
            "pages of another age": data[:8192] + os.urandom(len(data) - 8192),
        }[harm]
    )
    with capture_logs() as lines:
        counts = await opened(tmp_path)
    assert ["begin anew" in line["event"] for line in lines] == [True]
    assert (tmp_path / "damaged.mdb").exists()
    for key in keys:
        Allowance(key, counts).spend()
    counts.close()


async def test_a_directory_that_was_cleaned_away_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_counts, "_PAUSE_SECONDS", 0.0)
    counts = await opened(tmp_path / "counts")
    allowance = Allowance(new_key("caller", ["score"], requests_per_day=2)[1], counts)
    allowance.spend()
    for path in (tmp_path / "counts").iterdir():
        path.unlink()
    with capture_logs() as lines:
        await counts.look()
        await counts.look()
    assert [line["log_level"] for line in lines] == ["warning", "info"]
    allowance.spend()
    with pytest.raises(TooBusy):
        allowance.spend()
    counts.close()


async def test_a_place_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundles")
    append(tmp_path / "keys.yaml", new_key("caller", ["score"])[1])
    with lmdb.open(str(tmp_path / "features")) as other, other.begin(write=True) as transaction:
        transaction.put(b"something", b"else")
    (tmp_path / "file").touch()
    for place, said in (("features", "holds an LMDB database of something else"), ("file", "cannot be used")):
        security = {"keys_file": tmp_path / "keys.yaml", "limits_directory": tmp_path / place}
        with pytest.raises(StartError, match=rf"security\.limits_directory: .*{place} {said}"):
            async with running(make_settings(tmp_path / "bundles", security=security)):
                pass
    with lmdb.open(str(tmp_path / "features")) as other, other.begin() as transaction:
        assert transaction.get(b"something") == b"else"
