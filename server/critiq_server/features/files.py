"""The files of a store on disk: opening them safely, seeing that they are whole, compacting them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb

from critiq_server.features.store import StoreDamaged, StoreError, StoreFormatError, StoreLocked

DATA_FILE = "data.mdb"
LOCK_FILE = "critiq.lock"

_MAX_READERS = 1024
_DATABASES = 8
_ADDRESS_SPACE = (2**40, 2**36, 2**33)
"""Sizes of the map where no limit is set, the first that the system grants: it takes address space, not memory."""

_COPY_TO_NOWHERE = """
import lmdb, os, sys
environment = lmdb.open(sys.argv[1], readonly=True, lock=False, max_dbs=8, create=False)
sink = os.open(os.devnull, os.O_WRONLY)
environment.copyfd(sink, compact=True)
"""
"""Reads every page that is in use, the list of free ones too."""


class SharedLock:
    """Held by whoever writes to a store; compaction wants it alone. Nothing where the system has no ``flock``."""

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        """Raises ``StoreLocked`` if the store is being compacted, or (``alone``) if anyone has it open to write."""
        self._file: int | None = None
        if sys.platform == "win32":
            return
        import fcntl

        try:
            path.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise StoreError(f"{path} cannot be written to ({error.strerror}); open it read-only") from error
        try:
            fcntl.flock(self._file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.release()
            reason = "other processes have it open to write; stop them first" if alone else "it is being compacted"
            raise StoreLocked(f"{path} is locked: {reason}") from error

    def release(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def open_environment(path: Path, max_bytes: int | None, *, read_only: bool) -> lmdb.Environment:
    """The LMDB environment in ``path``; raises as :class:`~critiq_server.features.disk.DiskStore`."""
    if read_only and not (path / DATA_FILE).is_file():
        raise StoreError(f"there is no feature store in {path}; build one with `critiq features build --store {path}`")
    # Who only reads must be able to see as far as any writer may go.
    sizes = _ADDRESS_SPACE if max_bytes is None or read_only else (_map_size(path / DATA_FILE, max_bytes),)
    for size in sizes:
        try:
            return _open(path, size, read_only)
        except lmdb.MemoryError as error:
            if size == sizes[-1]:
                raise StoreError(f"{path}: the system grants no {size:,} bytes of address space") from error
        except lmdb.Error as error:
            raise _opening_error(path, error) from error
    raise AssertionError("unreachable")


def _opening_error(path: Path, error: lmdb.Error) -> StoreError:
    if isinstance(error, lmdb.InvalidError):
        return StoreFormatError(f"{path / DATA_FILE} is no LMDB file, so this is no feature store")
    if isinstance(error, lmdb.VersionMismatchError):
        return StoreFormatError(f"{path / DATA_FILE} was written by another version of LMDB")
    return StoreError(f"{path} cannot be opened: {error}")


def _map_size(file: Path, max_bytes: int) -> int:
    """The limit, in whole pages. A file that is larger needs room to become smaller: dropping entries writes pages."""
    present = file.stat().st_size if file.is_file() else 0
    size = max_bytes if present <= max_bytes else present + max(2**22, present // 20)
    return -(-size // 4096) * 4096


def _open(path: Path, size: int, read_only: bool) -> lmdb.Environment:
    # metasync=False: a crash of the machine may cost the last transaction, never the store.
    options: dict[str, Any] = {"map_size": size, "max_dbs": _DATABASES, "max_readers": _MAX_READERS, "metasync": False}
    if not read_only:
        environment = lmdb.open(str(path), readahead=False, **options)
        environment.reader_check()  # Readers that were killed would pin old pages for ever.
        return environment
    try:
        return lmdb.open(str(path), readonly=True, create=False, readahead=False, **options)
    except (lmdb.ReadonlyError, lmdb.LockError):
        # A place that cannot be written to has no room for the table of readers, nor a writer to see it.
        return lmdb.open(str(path), readonly=True, create=False, readahead=False, lock=False, **options)


def check_whole(path: Path) -> None:
    """Raises ``StoreDamaged`` if the file ends before its last page: touching what is missing would kill the process.

    A file may be short by free pages that were never written, which is rare and harmless; only then every page in use
    is read, in a process of its own, to tell one from the other.
    """
    file = path / DATA_FILE
    if not file.is_file() or file.stat().st_size == 0:
        return
    try:
        environment = lmdb.open(str(path), readonly=True, lock=False, max_dbs=_DATABASES, create=False)
    except lmdb.Error as error:
        if file.stat().st_size < 2 * os.sysconf("SC_PAGE_SIZE"):
            raise StoreDamaged(f"{file} is cut short: it has only {file.stat().st_size:,} bytes") from error
        raise _opening_error(path, error) from error
    try:
        expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    finally:
        environment.close()
    actual = file.stat().st_size
    if actual < expected and not every_page_reads(path):
        raise StoreDamaged(
            f"{file} is cut short: it has {actual:,} of {expected:,} bytes; copy it again, or build it anew"
        )


def every_page_reads(path: Path) -> bool:
    """Whether all pages in use can be read. In a process of its own, because a damaged map may kill it."""
    command = [sys.executable, "-c", _COPY_TO_NOWHERE, str(path)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def compact(path: Path) -> tuple[int, int]:
    """Rewrites the store without its free pages; returns the file's bytes before and after.

    Those who have it open to read keep reading the old file.

    Raises:
        StoreLocked: a process has it open to write.
        StoreError: it cannot be read, or there is no room for the copy.
    """
    if not (path / DATA_FILE).is_file():
        raise StoreError(f"there is no feature store in {path}")
    lock = SharedLock(path, alone=True)
    copy = path / "compacting.mdb"
    try:
        check_whole(path)
        before = (path / DATA_FILE).stat().st_size
        environment = lmdb.open(str(path), readonly=True, lock=False, max_dbs=_DATABASES, create=False)
        try:
            with copy.open("wb") as file:
                environment.copyfd(file.fileno(), compact=True)
                file.flush()
                os.fsync(file.fileno())
        finally:
            environment.close()
        copy.replace(path / DATA_FILE)
        return before, (path / DATA_FILE).stat().st_size
    except (lmdb.Error, OSError) as error:
        raise StoreError(f"{path} cannot be compacted: {error}") from error
    finally:
        copy.unlink(missing_ok=True)
        lock.release()
