"""Counts of limits that processes share: kept, forgotten, damaged, on a full disk; and a process that is killed."""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
import yaml
from structlog.testing import capture_logs

from critiq.errors import TooBusy
from critiq_server.listening import StartError
from critiq_server.security import counts_file, shared_counts
from critiq_server.security.counts_file import Store
from critiq_server.security.guard import Guard
from critiq_server.security.keys import Caller, Key, append, new_key
from critiq_server.security.limits import Allowance
from critiq_server.security.settings import SecuritySettings
from critiq_server.security.shared_counts import SharedCounts
from tests.server.security.test_keys import Clock
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.skipif(os.name == "nt", reason="counts are shared on Linux and macOS")

DAY = 86_400


def store(counts: SharedCounts) -> Store:
    assert counts._store is not None
    return counts._store


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
    before = (tmp_path / "features" / "lock.mdb").stat().st_ino
    (tmp_path / "file").touch()
    for place, said in (("features", "holds an LMDB database of something else"), ("file", "cannot be used")):
        security = {"keys_file": tmp_path / "keys.yaml", "limits_directory": tmp_path / place}
        with pytest.raises(StartError, match=rf"security\.limits_directory: .*{place} {said}"):
            async with running(make_settings(tmp_path / "bundles", security=security)):
                pass
    assert (tmp_path / "features" / "lock.mdb").stat().st_ino == before, "others may use it"
    with lmdb.open(str(tmp_path / "features")) as other, other.begin() as transaction:
        assert transaction.get(b"something") == b"else"
