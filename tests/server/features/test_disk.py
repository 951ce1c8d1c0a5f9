"""The store on disk: what is put is found, room is made in the right order, and other processes see it at once."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import lmdb
import pytest

from critiq_server.features.disk import DiskStore
from critiq_server.features.files import DATA_FILE, compact
from critiq_server.features.store import StoreError, StoreFull, StoreLocked
from tests.server.features.entries import assert_same, entries, features, key

MIB = 2**20


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    with DiskStore(tmp_path / "store") as opened:
        yield opened


def test_what_is_put_is_found(store: DiskStore) -> None:
    store.put_many(entries(1, 2))
    store.put_many(entries(3))
    assert_same(store.get_many([key(3), key(9), key(1)]), entries(1, 3))
    assert store.holds([key(1), key(9)]) == {key(1)}
    assert store.status().entries == 3


def test_it_is_there_after_closing(tmp_path: Path) -> None:
    with DiskStore(tmp_path / "store") as store:
        store.put_many(entries(1))
    with DiskStore(tmp_path / "store") as store:
        assert_same(store.get_many([key(1)]), entries(1))


def test_an_entry_stays_as_it_was_first(store: DiskStore) -> None:
    """A key names its content, so there is nothing to replace."""
    store.put_many(entries(1))
    before = store.content_digest()
    store.put_many({key(1): features(2)})
    assert store.content_digest() == before


def test_notes_lie_beside_features(store: DiskStore) -> None:
    name = "a folder/" * 100 + "picture\udcff.png"
    store.put_many(entries(1), {name: {"size": [3, 4]}, "other": {"é": None}})
    assert store.note(name) == {"size": [3, 4]}
    assert store.note("missing") is None
    store.put_many({}, {"other": {"now": 1}})
    assert dict(store.notes()) == {name: {"size": [3, 4]}, "other": {"now": 1}}


def test_the_content_digest_does_not_depend_on_how_it_came_about(tmp_path: Path) -> None:
    with DiskStore(tmp_path / "one") as one, DiskStore(tmp_path / "two") as two:
        one.put_many(entries(1, 2, 3), {"a": {"x": 1, "y": 2}})
        two.put_many(entries(3))
        two.put_many(entries(2), {"a": {"x": 0}})
        assert one.content_digest() != two.content_digest()
        two.get_many([key(3)])
        two.put_many(entries(2, 1), {"a": {"y": 2, "x": 1}})
        assert one.content_digest() == two.content_digest()


def test_the_least_recently_used_goes_first(tmp_path: Path) -> None:
    with DiskStore(tmp_path / "store", MIB) as store:
        first = entries(*range(40), width=4096)  # 12 KiB each in the file: 480 of 870 KiB
        store.put_many(first)
        assert_same(store.get_many(first), first)
        assert store.get_many([key(0), key(1)])  # a use, written with the next entries
        store.put_many(entries(*range(40, 80), width=4096))
        kept = store.holds([key(number) for number in range(80)])
        assert store.status().entries == len(kept) < 80
        assert {key(0), key(1), *(key(number) for number in range(40, 80))} <= kept
        gone = [number for number in range(2, 40) if key(number) not in kept]
        assert gone == list(range(2, 2 + len(gone)))


def test_uses_are_remembered_when_it_is_closed(tmp_path: Path) -> None:
    with DiskStore(tmp_path / "store", MIB) as store:
        store.put_many(entries(*range(50), width=4096))
    with DiskStore(tmp_path / "store", MIB) as store:
        store.get_many([key(0)])
    with DiskStore(tmp_path / "store", MIB) as store:
        store.put_many(entries(*range(50, 80), width=4096))
        assert store.holds([key(0), key(1)]) == {key(0)}


def test_the_file_stays_within_the_limit(tmp_path: Path) -> None:
    with DiskStore(tmp_path / "store", 4 * MIB) as store:
        for start in range(0, 1500, 25):
            store.put_many(entries(*range(start, start + 25), width=4096))
        status = store.status()
        assert (tmp_path / "store" / DATA_FILE).stat().st_size == status.file_bytes <= 4 * MIB
        assert status.entries > 200
        assert store.holds([key(1499)])


def test_a_smaller_limit_applies_to_what_is_there(tmp_path: Path) -> None:
    with DiskStore(tmp_path / "store") as store:
        store.put_many(entries(*range(1000), width=4096))
    with DiskStore(tmp_path / "store", 2 * MIB) as store:
        store.put_many(entries(1000, width=4096))
        assert 50 < store.status().entries < 200
        assert store.holds([key(1000), key(0)]) == {key(1000)}
    before, after = compact(tmp_path / "store")
    assert before > 8 * MIB
    assert after <= 2 * MIB


def test_more_than_the_limit_at_once_is_refused_and_costs_nothing(tmp_path: Path) -> None:
    with DiskStore(tmp_path / "store", MIB) as store:
        store.put_many(entries(1))
        with pytest.raises(StoreFull, match="1,048,576 bytes, too few for 100 entries"):
            store.put_many(entries(*range(2, 102), width=4096))
        assert_same(store.get_many([key(1), key(2)]), entries(1))


def test_compacting_keeps_the_content(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with DiskStore(path, 4 * MIB) as store:
        for start in range(0, 600, 50):
            store.put_many(entries(*range(start, start + 50), width=4096), {"n": {"last": start}})
        digest = store.content_digest()
        with pytest.raises(StoreLocked, match="open to write"):
            compact(path)
    before, after = compact(path)
    assert after < before
    with DiskStore(path, read_only=True) as store:
        assert store.content_digest() == digest
    assert {file.name for file in path.iterdir()} == {"data.mdb", "lock.mdb", "critiq.lock"}


def test_a_limit_too_small_for_anything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="1,048,576"):
        DiskStore(tmp_path / "store", 1000)


def test_reading_only_changes_nothing(tmp_path: Path) -> None:
    with DiskStore(tmp_path / "store") as store:
        store.put_many(entries(1))
    data = (tmp_path / "store" / DATA_FILE).read_bytes()
    with DiskStore(tmp_path / "store", read_only=True) as store:
        assert_same(store.get_many([key(1)]), entries(1))
        with pytest.raises(StoreError, match="read only"):
            store.put_many(entries(2))
    assert (tmp_path / "store" / DATA_FILE).read_bytes() == data


def test_a_missing_store_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no feature store in .*critiq features build"):
        DiskStore(tmp_path / "store", read_only=True)
    assert not (tmp_path / "store").exists()


READER = """
import sys
from pathlib import Path
from critiq_server.features.disk import DiskStore
store = DiskStore(Path(sys.argv[1]), read_only=True)
print(store.status().entries, flush=True)
for line in sys.stdin:
    print(store.status().entries, len(store.get_many([bytes.fromhex(line.strip())])), flush=True)
"""


def test_other_processes_see_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with DiskStore(path) as store:
        store.put_many(entries(0))
        command = [sys.executable, "-c", READER, str(path)]
        readers = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
        ]
        try:
            for reader in readers:
                assert reader.stdout is not None
                assert reader.stdout.readline() == "1\n"
            # Far beyond the size that the file had when they opened it.
            store.put_many(entries(*range(1, 500), width=4096))
            for reader in readers:
                assert reader.stdin is not None
                assert reader.stdout is not None
                reader.stdin.write(key(321).hex() + "\n")
                reader.stdin.flush()
                assert reader.stdout.readline() == "500 1\n"
        finally:
            for reader in readers:
                reader.communicate(timeout=120)


def test_threads_may_share_it(store: DiskStore) -> None:
    failures: list[BaseException] = []

    def work(first: int) -> None:
        try:
            for number in range(first, first + 20):
                store.put_many(entries(number))
                assert_same(store.get_many([key(number)]), entries(number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(100 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert store.status().entries == 80


def test_a_writer_that_holds_the_store_stops_no_reader(tmp_path: Path) -> None:
    path = tmp_path / "store"
    with DiskStore(path) as store:
        store.put_many(entries(1))
        with holding_the_write_lock(path):
            assert_same(store.get_many([key(1)]), entries(1))
            writing = threading.Thread(target=store.put_many, args=(entries(2),))
            writing.start()
            writing.join(0.2)
            assert writing.is_alive()
            assert_same(store.get_many([key(1), key(2)]), entries(1))
        writing.join(120)  # the holder was killed: its lock is free
        assert_same(store.get_many([key(2)]), entries(2))


HOLDER = """
import lmdb, sys, time
environment = lmdb.open(sys.argv[1], map_size=2**30, max_dbs=8)
transaction = environment.begin(write=True)
print("held", flush=True)
time.sleep(60)
"""


class holding_the_write_lock:  # noqa: N801 - reads as a block
    """Another process that began to write and never ends; killed at the end of the block."""

    def __init__(self, path: Path) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "held\n"

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()


def test_it_is_an_ordinary_lmdb_environment(tmp_path: Path) -> None:
    """Other programs can read it: key to record, in the database ``records``."""
    with DiskStore(tmp_path / "store") as store:
        store.put_many(entries(1))
    environment = lmdb.open(str(tmp_path / "store"), readonly=True, max_dbs=8)
    with environment.begin(environment.open_db(b"records", create=False)) as transaction:
        assert [name for name, _ in transaction.cursor()] == [key(1)]
    environment.close()
