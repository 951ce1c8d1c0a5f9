"""The feature store on disk: one LMDB environment, a directory with ``data.mdb`` and ``lock.mdb``.

Any number of processes read it while others write; a process that is killed loses at most what it was writing, and
the store stays whole. Beside the features lie *notes*: small JSON texts by name, written in the same transaction, with
which a builder says what the features are of.

A store with a limit makes room by dropping what was used longest ago. Uses are remembered in memory and written with
the next entries, because a read must not cost a write.
"""

from __future__ import annotations

import json
import struct
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
from blake3 import blake3

from critiq_server.features.files import DATA_FILE, SharedLock, check_whole, open_environment
from critiq_server.features.keys import Key
from critiq_server.features.records import Features, RecordError, check, decode, encode
from critiq_server.features.store import StoreDamaged, StoreError, StoreFormatError, StoreFull

FORMAT = "critiq-features/1"

_TRIM_FROM, _TRIM_TO = 0.85, 0.80
"""Shares of the limit at which room is made, and to which. The rest is for the pages that LMDB writes anew before it
frees the old ones."""
_TRIM_STEP = 1000
"""Entries dropped in one transaction at the most."""
_MAX_USES = 100_000
_MIN_LIMIT = 2**20
_PAGE = 4096
_INDEX_BYTES = 220
"""What an entry costs in the trees, measured with 8 KiB records: keys, stamps and half-filled pages."""

_STAMP = struct.Struct(">Q")
"""Time of last use, as a count of writes and uses: big-endian, so that LMDB's order is its order."""
_USE = struct.Struct(">QI")
"""Stamp and cost in bytes of one entry."""


@dataclass(frozen=True, slots=True)
class DiskStatus:
    """How full a store is. ``entry_bytes`` estimates the room that entries take, ``file_bytes`` is the file's size."""

    entries: int
    notes: int
    entry_bytes: int
    file_bytes: int
    format: str


class DiskStore:
    """A store in ``path``. Safe to use from several threads; only one :class:`DiskStore` a path in one process.

    Args:
        path: the directory; it is made if it is not there.
        max_bytes: what the file may take, at least 1 MiB; ``None``: as much as there is.
        read_only: neither writes nor needs the right to.
        on_damaged: told of every entry that is there but damaged: it is as good as missing.

    Raises:
        StoreFormatError: the path holds something else, or a store of another format.
        StoreDamaged: the file is cut short.
        StoreLocked: another process is compacting the store.
        StoreError: there is no store (``read_only``), or it cannot be opened.
    """

    def __init__(
        self,
        path: Path,
        max_bytes: int | None = None,
        *,
        read_only: bool = False,
        on_damaged: Callable[[Key, str], None] = lambda key, reason: None,
    ) -> None:
        if max_bytes is not None and max_bytes < _MIN_LIMIT:
            raise StoreError(f"a limit of {max_bytes:,} bytes is too small for a store; give at least {_MIN_LIMIT:,}")
        self.path = path
        self.read_only = read_only
        self._max_bytes = max_bytes
        self._on_damaged = on_damaged
        self._uses: OrderedDict[Key, None] = OrderedDict()
        self._uses_lock = threading.Lock()
        self._lock = None if read_only else SharedLock(path)
        try:
            check_whole(path)
            self._environment = open_environment(path, max_bytes, read_only=read_only)
        except BaseException:
            self._unlock()
            raise
        try:
            with self._failures():
                self._open_databases()
        except BaseException:
            self._environment.close()
            self._unlock()
            raise

    def get_many(self, keys: Iterable[Key]) -> dict[Key, Features]:
        """The features of those ``keys`` that are there and intact. Raises ``StoreError`` if the file fails."""
        found: dict[Key, Features] = {}
        with self._failures(), self._environment.begin(self._records, buffers=True) as transaction:
            for key in keys:
                record = transaction.get(key)
                if record is None:
                    continue
                try:
                    found[key] = decode(record)
                except RecordError as error:
                    self._on_damaged(key, str(error))
        if not self.read_only:
            self._remember_uses(found)
        return found

    def put_many(self, entries: Mapping[Key, Features], notes: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Keeps ``entries`` and ``notes``, all or nothing; on return they are on disk. See :meth:`put_records`."""
        self.put_records({key: encode(features) for key, features in entries.items()}, notes)

    def put_records(self, records: Mapping[Key, bytes], notes: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """As :meth:`put_many`, with encoded features. An intact entry that is there stays as it is; notes are replaced.

        Raises:
            StoreFull: the disk is full, or the entries are more than the limit holds.
            StoreError: the store was opened to read, or the file fails.
        """
        if self.read_only:
            raise StoreError(f"{self.path} was opened to read only")
        incoming = sum(map(_cost, records.values()))
        self._check_fits(records, incoming)
        with self._failures():
            self._make_room(incoming)
            for share in (0.5, 0.2, 0.0):
                try:
                    with self._environment.begin(write=True) as transaction:
                        self._write(transaction, records, notes or {}, self._take_uses())
                    return
                except lmdb.MapFullError:
                    self._trim(share)
        raise StoreFull(f"{self.path} is full of notes, or of pages that readers hold; raise its limit")

    def holds(self, keys: Iterable[Key]) -> set[Key]:
        """Those of ``keys`` that are there and intact."""
        with self._failures(), self._environment.begin(self._records, buffers=True) as transaction:
            return {key for key in keys if _intact(transaction.get(key, b""))}

    def records(self) -> Iterator[tuple[Key, bytes]]:
        """Every entry as it is stored, in the order of keys, as of one moment."""
        with self._failures(), self._environment.begin(self._records) as transaction:
            yield from transaction.cursor()

    def note(self, name: str) -> dict[str, Any] | None:
        """The note called ``name``; ``None`` where there is none."""
        with self._failures(), self._environment.begin(self._notes) as transaction:
            text = transaction.get(_note_key(name))
        return json.loads(text)[1] if text is not None else None

    def notes(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every note with its name, in no order that means anything but the same in every store with these names."""
        with self._failures(), self._environment.begin(self._notes) as transaction:
            for _, text in transaction.cursor():
                name, note = json.loads(text)
                yield name, note

    def content_digest(self) -> str:
        """A hash of all entries and notes: the same for two stores that hold the same, however they came to it."""
        hasher = blake3(FORMAT.encode())
        with self._failures(), self._environment.begin() as transaction:
            for database in (self._records, self._notes):
                for key, value in transaction.cursor(database):
                    hasher.update(struct.pack("<II", len(key), len(value)) + key + value)
        return str(hasher.hexdigest())

    def status(self) -> DiskStatus:
        """How full the store is."""
        with self._failures(), self._environment.begin() as transaction:
            return DiskStatus(
                transaction.stat(self._records)["entries"],
                transaction.stat(self._notes)["entries"],
                self._entry_bytes(transaction),
                (self.path / DATA_FILE).stat().st_size,
                FORMAT,
            )

    def close(self) -> None:
        """Writes what is known of the latest uses, and lets go of the file."""
        uses = {} if self.read_only else self._take_uses()
        try:
            if uses:
                with self._failures(), self._environment.begin(write=True) as transaction:
                    self._write(transaction, {}, {}, uses)
        except StoreError:  # nothing is lost but the order in which entries would be dropped
            pass
        finally:
            self._environment.close()
            self._unlock()

    def __enter__(self) -> DiskStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open_databases(self) -> None:
        environment, create = self._environment, not self.read_only
        with environment.begin() as transaction:
            is_new = transaction.stat(environment.open_db(txn=transaction))["entries"] == 0
        if is_new and create:
            with environment.begin(write=True) as transaction:
                meta = environment.open_db(b"meta", txn=transaction)
                transaction.put(b"format", FORMAT.encode(), db=meta)
                for name in (b"records", b"notes", b"uses", b"order"):
                    environment.open_db(name, txn=transaction)
        try:
            self._meta = environment.open_db(b"meta", create=False)
        except lmdb.Error as error:
            raise StoreFormatError(f"{self.path} holds an LMDB database that is no feature store") from error
        with environment.begin(self._meta) as transaction:
            form = transaction.get(b"format", b"").decode("utf-8", "replace")
        if form != FORMAT:
            raise StoreFormatError(
                f"{self.path} has the format {form!r}, this program uses {FORMAT!r}; build the store anew, "
                "or use the version of critiq that wrote it"
            )
        self._records, self._notes, self._use_of, self._order = (
            environment.open_db(name, create=False) for name in (b"records", b"notes", b"uses", b"order")
        )

    def _check_fits(self, records: Mapping[Key, bytes], incoming: int) -> None:
        """One request must not drop everything else, and still fail."""
        if self._max_bytes is not None and incoming > 0.7 * self._max_bytes:
            raise StoreFull(
                f"{self.path} is limited to {self._max_bytes:,} bytes, too few for {len(records)} entries of "
                f"{sum(map(len, records.values())):,} bytes at once; raise the limit"
            )

    def _write(
        self,
        transaction: lmdb.Transaction,
        records: Mapping[Key, bytes],
        notes: Mapping[str, Mapping[str, Any]],
        uses: Iterable[Key],
    ) -> None:
        clock = _STAMP.unpack(transaction.get(b"clock", bytes(8), db=self._meta))[0]
        size = self._entry_bytes(transaction)
        for key in uses:
            use = _value(transaction, key, self._use_of)
            if use is not None:  # it may have been dropped since
                clock += 1
                self._stamp(transaction, key, clock, use)
        for key, record in records.items():
            clock += 1
            use = _value(transaction, key, self._use_of)
            if use is None or not _intact(_value(transaction, key, self._records) or b""):
                size += _cost(record) - (_USE.unpack(use)[1] if use is not None else 0)
                transaction.put(key, record, db=self._records)
                self._stamp(transaction, key, clock, use, _cost(record))
            else:
                self._stamp(transaction, key, clock, use)
        for name, note in notes.items():
            text = json.dumps([name, note], sort_keys=True, separators=(",", ":"))
            transaction.put(_note_key(name), text.encode(), db=self._notes)
        transaction.put(b"clock", _STAMP.pack(clock), db=self._meta)
        transaction.put(b"bytes", _STAMP.pack(size), db=self._meta)

    def _stamp(
        self, transaction: lmdb.Transaction, key: Key, clock: int, use: bytes | None, cost: int | None = None
    ) -> None:
        if use is not None:
            transaction.delete(use[: _STAMP.size], db=self._order)
            cost = _USE.unpack(use)[1] if cost is None else cost
        transaction.put(key, _USE.pack(clock, cost), db=self._use_of)
        transaction.put(_STAMP.pack(clock), key, db=self._order)

    def _make_room(self, incoming: int) -> None:
        if self._max_bytes is None:
            return
        with self._environment.begin() as transaction:
            size = self._entry_bytes(transaction)
        if size + incoming <= _TRIM_FROM * self._max_bytes:
            return
        with suppress(lmdb.MapFullError), self._environment.begin(write=True) as transaction:
            # First of all, or what was used a moment ago would count as old.
            self._write(transaction, {}, {}, self._take_uses())
        self._trim(_TRIM_TO - incoming / self._max_bytes)

    def _trim(self, share: float) -> None:
        """Drops what was used longest ago until entries take no more than ``share`` of the limit."""
        if self._max_bytes is None:
            return
        target = int(share * self._max_bytes)
        # Dropping, too, writes pages anew before it frees the old ones.
        step = min(_TRIM_STEP, max(8, self._max_bytes // 2**18))
        size = target + 1
        while size > target:
            with self._environment.begin(write=True) as transaction:
                size = self._drop_oldest(transaction, target, step)
        with self._environment.begin(write=True) as transaction:
            # What one transaction frees can be used by the one after the next.
            transaction.put(b"bytes", _STAMP.pack(size), db=self._meta)

    def _drop_oldest(self, transaction: lmdb.Transaction, target: int, step: int) -> int:
        size = self._entry_bytes(transaction)
        cursor = transaction.cursor(self._order)
        for _ in range(step):
            if size <= target:
                break
            if not cursor.first():
                size = 0
                break
            key = bytes(cursor.value())
            cursor.delete()
            size -= _USE.unpack(transaction.pop(key, db=self._use_of) or bytes(_USE.size))[1]
            transaction.delete(key, db=self._records)
        size = max(0, size)
        transaction.put(b"bytes", _STAMP.pack(size), db=self._meta)
        return size

    def _entry_bytes(self, transaction: lmdb.Transaction) -> int:
        return int(_STAMP.unpack(transaction.get(b"bytes", bytes(8), db=self._meta))[0])

    def _remember_uses(self, keys: Iterable[Key]) -> None:
        with self._uses_lock:
            for key in keys:
                self._uses[key] = None
                self._uses.move_to_end(key)
            while len(self._uses) > _MAX_USES:
                self._uses.popitem(last=False)

    def _take_uses(self) -> dict[Key, None]:
        with self._uses_lock:
            uses = dict(self._uses)
            self._uses.clear()
        return uses

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """LMDB's errors as the store's."""
        try:
            yield
        except (lmdb.CorruptedError, lmdb.PageNotFoundError, lmdb.PanicError) as error:
            raise StoreDamaged(
                f"{self.path} is damaged ({error}); check it with `critiq features verify`, or build it anew"
            ) from error
        except lmdb.MapResizedError as error:
            raise StoreError(
                f"{self.path} was made larger by a process with another limit; give all its users the same limit"
            ) from error
        except lmdb.Error as error:
            text = str(error)
            # LMDB calls a write that was cut short, as a full disk does it, an input/output error.
            if any(reason in text for reason in ("No space left", "too large", "quota", "Input/output")):
                raise StoreFull(
                    f"{self.path} cannot be written ({text}): its file system is full, or fails; make room there"
                ) from error
            raise StoreError(f"{self.path}: {text}") from error


def _value(transaction: lmdb.Transaction, key: bytes, database: Any) -> bytes | None:
    value = transaction.get(key, db=database)
    return bytes(value) if value is not None else None


def _note_key(name: str) -> bytes:
    # Names are as long as paths; LMDB's keys are not.
    return bytes(blake3(name.encode("utf-8", "surrogateescape")).digest())


def _intact(record: bytes | memoryview) -> bool:
    try:
        check(record)
    except RecordError:
        return False
    return True


def _cost(record: bytes) -> int:
    """Bytes in the file: LMDB gives whole pages to a record that does not fit twice into one."""
    if len(record) <= _PAGE // 2 - 64:
        return 2 * len(record) + _INDEX_BYTES
    return -(-(len(record) + 16) // _PAGE) * _PAGE + _INDEX_BYTES
