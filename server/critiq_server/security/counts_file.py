"""The LMDB environment in which processes of one machine count what callers have spent, and who of them is alive.

Nothing is flushed to the disk: what is counted outlives processes, and after a crash of the machine the file is tried
before it is used.
"""

from __future__ import annotations

import errno
import os
import secrets
import struct
import subprocess
import sys
from array import array
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import lmdb
import structlog

from critiq_server.security.keys import KeysError
from critiq_server.security.limits import Spent

logger = structlog.get_logger("critiq.audit")

_DATA, _DAMAGED, _READERS, _OPENING = "data.mdb", "damaged.mdb", "lock.mdb", "opening.lock"
_LARGEST = 64 * 2**20
"""Bytes of the file: some 400,000 callers, four times as many as are kept."""
_AT_ONCE = 1000
"""Rows looked at, or dropped, before requests come in between; about 1 ms."""
_MAX_PROCESSES = 1024
_ID, _OWNER = 16, 8
"""Bytes of a caller's and of a process's id."""
_ROW = struct.Struct("<dddqQqQ")
_OURS = b"critiq-limits/"
_SPENT_ROWS, _CALL_ROWS = _OURS + b"1 spent", _OURS + b"1 calls"
_SOMETHING_ELSE = 4
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG}
"""A disk that is full or fails may get better; a wrong path does not."""
_COPY = f"""
import lmdb, sys
environment = lmdb.open(sys.argv[1], readonly=True, lock=False, create=False, max_dbs=8)
with environment.begin() as transaction:
    if not all(name.startswith({_OURS!r}) for name in transaction.cursor().iternext(values=False)):
        sys.exit({_SOMETHING_ELSE})
environment.copyfd(1, compact=True)
"""


class Store:
    """The environment as one process has it open. Calls under way are counted in a row for each caller and process.

    Args:
        environment: of ``directory``; closed with this.
        alive: ids of the other processes that use it; calls of those that are gone are forgotten.
    """

    def __init__(self, environment: lmdb.Environment, directory: Path, alive: Collection[str]) -> None:
        self.environment, self._directory = environment, directory
        self.spent = environment.open_db(_SPENT_ROWS)
        self.calls = environment.open_db(_CALL_ROWS)
        self.owner = secrets.token_bytes(_OWNER)
        self.busy = False
        """Whether this process is writing."""
        self.forget_all_but(alive)
        # Held until this process ends, however it does; a process id says less, as it may be another's by now.
        self._file = directory / f"{self.owner.hex()}.process"
        self._alive = _lock(self._file)

    @contextmanager
    def writing(self, database: Any) -> Iterator[lmdb.Transaction[bytes]]:
        """A transaction: all of it, or nothing where an exception ends it."""
        self.busy = True
        try:
            with self.environment.begin(database, write=True) as transaction:
                yield transaction
        finally:
            self.busy = False

    def elsewhere(self, transaction: lmdb.Transaction, of: bytes) -> int:
        """Calls of this caller under way in other processes."""
        cursor, total = transaction.cursor(self.calls), 0
        found = cursor.set_range(of)
        while found and (key := cursor.key())[:_ID] == of:
            if key[_ID:] != self.owner:
                total += int.from_bytes(cursor.value())
            found = cursor.next()
        return total

    def add(self, transaction: lmdb.Transaction, of: bytes, calls: int) -> None:
        """To those of this caller under way in this process."""
        row = of + self.owner
        before = transaction.get(row)
        left = calls + int.from_bytes(before or b"")
        if left > 0:
            transaction.put(row, left.to_bytes(4))
        else:
            transaction.delete(row)

    def stay(self) -> None:
        """Keeps those who clean up old files from these; raises ``FileNotFoundError`` if one did not wait."""
        for path in (self._file, *(self._directory / name for name in (_DATA, _READERS, _OPENING))):
            os.utime(path)

    def forget_the_dead(self) -> None:
        """Drops the calls of processes that are gone."""
        if any(row[_ID:] != self.owner for row in self._calls_under_way()):
            with _opening(self._directory, wait=False) as had:
                if had:  # or else another process sees to it, or begins
                    self.forget_all_but(_alive(self._directory))

    def forget_all_but(self, alive: Collection[str]) -> None:
        """Drops the calls of other processes than these and this one."""
        self.environment.reader_check()  # one that was killed while it read keeps old pages
        dead = [row for row in self._calls_under_way() if row[_ID:].hex() not in (self.owner.hex(), *alive)]
        if dead:
            with self.writing(self.calls) as transaction:
                for row in dead:
                    transaction.delete(row)

    def _calls_under_way(self) -> list[bytes]:
        with self.environment.begin(self.calls) as transaction:
            return [bytes(row) for row in transaction.cursor().iternext(values=False)]

    def forget_the_oldest(self, most: int) -> Iterator[None]:
        """Drops the callers that have not come for longest, where there are more than ``most``; rests now and then."""
        if self._callers() <= most:
            return
        seen = array("d")
        for rows in self._slices():
            seen.extend(when for _, when in rows)
            yield
        too_old = sorted(seen)[len(seen) - most + most // 10]
        for rows in self._slices():
            old = [of for of, when in rows if when < too_old]
            with self.writing(self.spent) as transaction:
                for of in old:
                    transaction.delete(of)
            yield

    def _callers(self) -> int:
        with self.environment.begin() as transaction:
            return int(transaction.stat(self.spent)["entries"])

    def _slices(self) -> Iterator[list[tuple[bytes, float]]]:
        """Callers and when they were last seen, so many at once."""
        after = b""
        while True:
            with self.environment.begin(self.spent) as transaction:
                cursor = transaction.cursor()
                found = cursor.set_range(after)
                rows: list[tuple[bytes, float]] = []
                while found and len(rows) < _AT_ONCE:
                    row = unpack(cursor.value(), Spent(0, 0))
                    rows.append((bytes(cursor.key()), row.seen))
                    found = cursor.next()
            if not rows:
                return
            yield rows
            after = rows[-1][0] + b"\0"

    def close(self) -> None:
        """Lets go of the directory; this process's calls are the others' to forget."""
        self.environment.close()
        with suppress(OSError):
            self._file.unlink()
        os.close(self._alive)


def open_store(directory: Path) -> Store:
    """The store in ``directory``.

    Raises:
        KeysError: the directory is none to keep counts in; the message says why and what to do.
        lmdb.Error, OSError: the disk is full or fails.
    """
    if sys.platform == "win32":
        raise KeysError("security.limits_directory needs Linux or macOS; leave it empty: the server counts in memory")
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opening(directory, wait=True):
            alive = _alive(directory)
            if not alive:
                _renew(directory)
            environment = _environment(directory)
            try:
                return Store(environment, directory, alive)
            except BaseException:
                environment.close()
                raise
    except OSError as error:
        if error.errno in _PASSING:
            raise
        raise KeysError(
            f"security.limits_directory: {directory} cannot be used ({error.strerror}); name a directory on a local "
            "disk that the server may write to"
        ) from error


def _environment(directory: Path) -> lmdb.Environment:
    return lmdb.open(
        str(directory),
        map_size=_LARGEST,
        mode=0o600,
        sync=False,
        metasync=False,
        readahead=False,
        max_dbs=2,
        max_readers=_MAX_PROCESSES,
    )


def _renew(directory: Path) -> None:
    """Writes the file anew before the first process uses it, or puts it aside if it cannot be read.

    A machine that crashed may have left pages of different ages in it, with which LMDB can end its process: so another
    one reads it, and what that one gives is whole.
    """
    file = directory / _DATA
    if not file.exists() or file.stat().st_size == 0:
        return
    copy, status = _copy(directory) if file.stat().st_size <= _LARGEST else (b"", _SOMETHING_ELSE)
    if status == _SOMETHING_ELSE:
        raise KeysError(
            f"security.limits_directory: {directory} holds an LMDB database of something else; name another directory"
        )
    (directory / _READERS).unlink(missing_ok=True)
    if status == 0:
        beside = directory / "renewed.mdb"
        beside.touch(mode=0o600)
        beside.write_bytes(copy)
        beside.replace(file)
        return
    file.replace(directory / _DAMAGED)
    logger.warning("the counts of callers' limits cannot be read and begin anew", put_aside=str(directory / _DAMAGED))


def _copy(directory: Path) -> tuple[bytes, int]:
    """The file without its free pages, and the exit status of the process that has read it."""
    command = [sys.executable, "-I", "-c", _COPY, str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        copy = reader.stdout.read(_LARGEST + 1) if reader.stdout is not None else b""
        if len(copy) > _LARGEST:
            reader.kill()  # pages that lead to one another are read for ever
    return copy, reader.returncode


def _alive(directory: Path) -> set[str]:
    """Ids of the processes that use the directory; what others have left of themselves is removed."""
    found = set()
    for path in directory.glob("*.process"):
        try:
            os.close(_lock(path))
            path.unlink()
        except BlockingIOError:
            found.add(path.stem)
    return found


@contextmanager
def _opening(directory: Path, *, wait: bool) -> Iterator[bool]:
    """Held by one process at a time, which finds out who is alive or comes to life; false: another has it."""
    try:
        lock = _lock(directory / _OPENING, wait=wait)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(lock)


def _lock(path: Path, *, wait: bool = False) -> int:
    """A descriptor that holds the file until it is closed. Raises ``BlockingIOError`` if another one does."""
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BaseException:
        os.close(file)
        raise
    return file


def pack(spent: Spent) -> bytes:
    return _ROW.pack(spent.tokens, spent.filled, spent.seen, spent.day, spent.today, spent.other_day, spent.then)


def unpack(row: bytes | None, into: Spent) -> Spent:
    """Leaves ``into`` as it is where there is no row, or none of ours."""
    if row is not None and len(row) == _ROW.size:
        (
            into.tokens,
            into.filled,
            into.seen,
            into.day,
            into.today,
            into.other_day,
            into.then,
        ) = _ROW.unpack(row)
    return into
