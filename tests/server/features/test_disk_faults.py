"""What can be wrong with a store on disk: each has its error, or its way out, and none ends the process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import lmdb
import pytest

from critiq_server.features.disk import DiskStore
from critiq_server.features.files import DATA_FILE, SharedLock
from critiq_server.features.keys import Key
from critiq_server.features.store import StoreDamaged, StoreError, StoreFormatError, StoreLocked
from tests.server.features.entries import assert_same, entries, key


def built(path: Path, count: int = 200) -> Path:
    with DiskStore(path) as store:
        store.put_many(entries(*range(count), width=4096))
    return path


def test_a_store_of_another_format_is_named(tmp_path: Path) -> None:
    path = built(tmp_path / "store", 1)
    environment = lmdb.open(str(path), max_dbs=8)
    with environment.begin(environment.open_db(b"meta"), write=True) as transaction:
        transaction.put(b"format", b"critiq-features/9")
    environment.close()
    for read_only in (False, True):
        with pytest.raises(StoreFormatError, match=r"critiq-features/9.*critiq-features/1"):
            DiskStore(path, read_only=read_only)


def test_another_lmdb_environment_is_left_alone(tmp_path: Path) -> None:
    environment = lmdb.open(str(tmp_path), max_dbs=8)
    with environment.begin(environment.open_db(b"somebody's"), write=True) as transaction:
        transaction.put(b"a", b"b")
    environment.close()
    before = (tmp_path / DATA_FILE).read_bytes()
    with pytest.raises(StoreFormatError, match="no feature store"):
        DiskStore(tmp_path)
    assert (tmp_path / DATA_FILE).read_bytes() == before


def test_a_file_that_is_no_lmdb_is_named(tmp_path: Path) -> None:
    (tmp_path / DATA_FILE).write_bytes(b"not a store " * 10_000)
    with pytest.raises(StoreFormatError, match=r"data\.mdb is no LMDB file"):
        DiskStore(tmp_path)


def test_a_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "store").write_bytes(b"")
    with pytest.raises(StoreError, match="cannot be written to"):
        DiskStore(tmp_path / "store")


@pytest.mark.parametrize("share", [0.99, 0.5, 0.01, 0.0001])
def test_a_file_cut_short_is_refused(tmp_path: Path, share: float) -> None:
    path = built(tmp_path / "store")
    size = (path / DATA_FILE).stat().st_size
    os.truncate(path / DATA_FILE, int(share * size))
    for read_only in (False, True):
        with pytest.raises(StoreDamaged, match="cut short"):
            DiskStore(path, read_only=read_only)


def test_a_file_short_of_free_pages_only_is_whole(tmp_path: Path) -> None:
    """LMDB may end with pages that it never wrote: killing it between two steps must not condemn the store."""
    path = tmp_path / "store"
    with DiskStore(path, 2**20) as store:
        for number in range(0, 300, 10):
            store.put_many(entries(*range(number, number + 10), width=4096))
        store._trim(0.0)  # everything is dropped: the file's end is free
        store.put_many(entries(1000))
    size = (path / DATA_FILE).stat().st_size
    os.truncate(path / DATA_FILE, size - 4096)
    with DiskStore(path, 2**20) as store:
        assert_same(store.get_many([key(1000)]), entries(1000))
        store.put_many(entries(*range(20), width=4096))
        assert_same(store.get_many([key(5)]), entries(5, width=4096))


def test_a_damaged_entry_is_as_good_as_missing_and_can_be_put_again(tmp_path: Path) -> None:
    path = built(tmp_path / "store", 3)
    environment = lmdb.open(str(path), max_dbs=8)
    with environment.begin(environment.open_db(b"records"), write=True) as transaction:
        record = bytearray(transaction.get(key(1)))
        record[100] ^= 1
        transaction.put(key(1), bytes(record))
    environment.close()
    told: list[tuple[Key, str]] = []
    with DiskStore(path, on_damaged=lambda which, reason: told.append((which, reason))) as store:
        expected = entries(0, 1, 2, width=4096)
        assert store.get_many(expected).keys() == {key(0), key(2)}
        assert told == [(key(1), "the record is damaged: its checksum is wrong")]
        store.put_many(expected)
        assert_same(store.get_many(expected), expected)
        assert store.status().entries == 3


def test_a_store_that_is_being_compacted_is_locked_for_writers(tmp_path: Path) -> None:
    path = built(tmp_path / "store", 1)
    lock = SharedLock(path, alone=True)
    with pytest.raises(StoreLocked, match="being compacted"):
        DiskStore(path)
    with DiskStore(path, read_only=True) as store:
        assert store.status().entries == 1
    lock.release()
    DiskStore(path).close()


FILLER = """
import resource, sys
sys.path.insert(0, ".")
from pathlib import Path
from critiq_server.features.disk import DiskStore
from critiq_server.features.store import StoreFull
from tests.server.features.entries import assert_same, entries, key
store = DiskStore(Path(sys.argv[1]))
store.put_many(entries(1, width=4096))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
try:
    store.put_many(entries(*range(2, 500), width=4096))
except StoreFull as error:
    print("full:", error)
assert_same(store.get_many([key(1), key(2)]), entries(1, width=4096))
store.put_many(entries(600, width=64))
assert_same(store.get_many([key(600)]), entries(600, width=64))
store.close()
"""


def test_a_full_disk_is_an_error_and_what_was_there_stays(tmp_path: Path) -> None:
    """The system lets the process's files grow no further, as it does where a disk or a quota is full."""
    path = tmp_path / "store"
    done = subprocess.run(
        [sys.executable, "-c", FILLER, str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "full:" in done.stdout
    assert "make room" in done.stdout
    with DiskStore(path) as store:
        assert store.status().entries == 2
        store.put_many(entries(700))


WRITER = """
import sys
sys.path.insert(0, ".")
from pathlib import Path
from critiq_server.features.disk import DiskStore
from tests.server.features.entries import entries
store = DiskStore(Path(sys.argv[1]), 8 * 2**20)
for first in range(0, 10**9, 8):
    store.put_many(entries(*range(first, first + 8), width=1024), {"last": {"batch": first}})
    print(first, flush=True)
"""


def test_a_killed_writer_loses_at_most_the_batch_in_flight(tmp_path: Path) -> None:
    path = tmp_path / "store"
    for attempt in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.05 + 0.11 * attempt)
        process.send_signal(signal.SIGKILL)
        acknowledged = int(["0", *process.stdout.read().split()][-1])
        process.wait()
        with DiskStore(path, 8 * 2**20) as store:
            note = store.note("last")
            assert note is not None
            last = note["batch"]
            assert last >= acknowledged
            batch = entries(*range(last, last + 8), width=1024)
            assert_same(store.get_many(batch), batch)  # all or nothing
            assert store.holds(entries(*range(last + 8, last + 16))) == set()
        (path / DATA_FILE).unlink()
