"""Jobs in SQLite. One connection a process, used from one thread; every method is one transaction.

What is deleted is overwritten at once (``secure_delete``) and the log that still has it is emptied (:meth:`forget`), so
neither pictures nor prompts outlive their job in the file. Times are Unix seconds.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from critiq.errors import FailedPrecondition, TooBusy
from critiq.jobs import Job, JobCallback, JobState
from critiq.types import Decision
from critiq_server.jobs.records import NewJob, PendingItem, query_of
from critiq_server.jobs.settings import JobSettings
from critiq_server.outbound.urls import parse

SCHEMA = 2
_TABLES = """
CREATE TABLE jobs (
  number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, state TEXT NOT NULL, items INTEGER NOT NULL,
  answered INTEGER NOT NULL, failed INTEGER NOT NULL, accept INTEGER NOT NULL DEFAULT 0,
  review INTEGER NOT NULL DEFAULT 0, reject INTEGER NOT NULL DEFAULT 0, waiting_bytes INTEGER NOT NULL,
  policy TEXT NOT NULL, policy_version TEXT NOT NULL, created REAL NOT NULL, started REAL, finished REAL,
  error TEXT NOT NULL DEFAULT '', key TEXT UNIQUE, digest BLOB NOT NULL, owner TEXT NOT NULL DEFAULT ''
);
CREATE INDEX jobs_by_state ON jobs (state, number);
CREATE TABLE items (
  job INTEGER NOT NULL REFERENCES jobs ON DELETE CASCADE, position INTEGER NOT NULL, id TEXT NOT NULL,
  size INTEGER NOT NULL, tries INTEGER NOT NULL DEFAULT 0, asked BLOB, data BLOB, result BLOB,
  PRIMARY KEY (job, position)
);
CREATE INDEX items_pending ON items (job, tries, position) WHERE result IS NULL;
CREATE TABLE callbacks (
  job INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE, message TEXT NOT NULL, url TEXT NOT NULL, body BLOB,
  state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, last_error TEXT NOT NULL DEFAULT '', due REAL,
  give_up REAL
);
CREATE INDEX callbacks_due ON callbacks (due) WHERE due IS NOT NULL;
"""
_TRACES = """CREATE TABLE IF NOT EXISTS traces (
  job INTEGER PRIMARY KEY REFERENCES jobs ON DELETE CASCADE, parent TEXT NOT NULL
)"""
"""Beside the schema's version: servers that know nothing of it can use the file."""
_JOB = """SELECT jobs.*, callbacks.url, callbacks.state AS callback_state, callbacks.attempts, callbacks.last_error,
callbacks.due FROM jobs LEFT JOIN callbacks ON callbacks.job = jobs.number """
_PORTION_BYTES = 32 * 2**20
"""Pictures of one portion are held in memory at once; one larger than this goes by itself."""
DECISIONS: tuple[Decision, ...] = get_args(Decision)
_SHARED_WAIT = 20.0
"""Seconds that a process waits for another one's transaction."""
_RETRY = 5.0
"""Seconds after which a caller who found no room may come back."""


class JobStoreError(Exception):
    """The file of the jobs cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The outcome of one item; ``decision`` only in a job with a policy."""

    position: int
    result: bytes
    failed: bool
    decision: str = ""


@dataclass(frozen=True, slots=True)
class Totals:
    """What the metrics show. ``oldest``: when the oldest queued job was created."""

    by_state: dict[str, int]
    waiting_bytes: int
    oldest: float | None


class JobStore:
    """Opens the file, or makes it.

    Args:
        shared: whether other processes of this server open it too; otherwise it is this one's alone.

    Raises:
        JobStoreError: it cannot be written, is no such file, is of another version, or another server has it open.
    """

    def __init__(self, path: Path, settings: JobSettings, *, shared: bool = False) -> None:
        self._settings = settings
        try:
            path.touch(mode=0o600)  # the log beside it gets the same mode
            self.connection = sqlite3.connect(path, isolation_level=None, timeout=_SHARED_WAIT if shared else 1.0)
            try:
                self._prepare(path, shared)
            except BaseException:
                self.connection.close()
                raise
        except (sqlite3.Error, OSError) as error:
            if "locked" in str(error):
                raise JobStoreError(f"{path} is in use by another server; give each its own jobs.path") from error
            raise JobStoreError(
                f"jobs cannot be kept in {path} ({error}); jobs.path must name a file that this process may write"
            ) from error

    def _prepare(self, path: Path, shared: bool) -> None:
        self.connection.row_factory = sqlite3.Row
        run = self.connection.execute
        if not shared:
            run("PRAGMA locking_mode = EXCLUSIVE")  # two servers would do each job twice
        run("PRAGMA auto_vacuum = INCREMENTAL")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")  # a job that was acknowledged survives a power failure
        run("PRAGMA secure_delete = ON")
        run("PRAGMA foreign_keys = ON")
        with self.transaction():
            version = run("PRAGMA user_version").fetchone()[0]
            if version == 0:
                if run("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                    raise JobStoreError(
                        f"{path} is a database of something else; jobs.path must name one for jobs only"
                    )
                for statement in _TABLES.split(";"):
                    run(statement)
                run(f"PRAGMA user_version = {SCHEMA}")
            elif version == 1:
                run("ALTER TABLE jobs ADD COLUMN owner TEXT NOT NULL DEFAULT ''")
                run(f"PRAGMA user_version = {SCHEMA}")
            elif version != SCHEMA:
                raise JobStoreError(
                    f"{path} has jobs of version {version}, this server knows {SCHEMA}; finish them with the server "
                    "that made them, or name another file"
                )
            run(_TRACES)

    def close(self) -> None:
        self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing of what is done inside."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def submit(self, new: NewJob, now: float) -> Job:
        """Stores a job, or finds the one that was stored with its key.

        Raises ``TooBusy`` if there is no room, ``FailedPrecondition`` if the key is another job's.
        """
        digest = new.digest()
        # Callers choose keys without knowing of each other's.
        key = f"{new.owner}\n{new.key}" if new.key and new.owner else new.key
        with self.transaction():
            if key:
                known = self.connection.execute("SELECT id, digest FROM jobs WHERE key = ?", (key,)).fetchone()
                if known is not None:
                    if known["digest"] != digest:
                        raise FailedPrecondition(
                            f"this key was used for job {known['id']}, which asks something else; choose another key",
                            field="idempotency_key",
                        )
                    return self._found(known["id"])
            self._check_room(new.size)
            name = f"job_{secrets.token_hex(16)}"
            answered = sum(item.result is not None for item in new.items)
            number = self.connection.execute(
                "INSERT INTO jobs (id, state, items, answered, failed, waiting_bytes, policy, policy_version, created, "
                "key, digest, owner) VALUES (?, 'queued', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    name,
                    len(new.items),
                    answered,
                    answered,
                    new.size,
                    new.policy,
                    new.policy_version,
                    now,
                    key or None,
                    digest,
                    new.owner,
                ),
            ).lastrowid
            self.connection.executemany(
                "INSERT INTO items (job, position, id, size, asked, data, result) VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    (number, position, item.id, item.size, item.asked, item.data, item.result)
                    for position, item in enumerate(new.items)
                ),
            )
            if new.trace:
                self.connection.execute("INSERT INTO traces (job, parent) VALUES (?, ?)", (number, new.trace))
            if new.callback:
                self.connection.execute(
                    "INSERT INTO callbacks (job, message, url, state) VALUES (?, ?, ?, 'pending')",
                    (number, f"msg_{secrets.token_hex(16)}", new.callback),
                )
            return self._found(name)

    def get(self, name: str, owner: str | None = None) -> Job | None:
        """``owner``: only if it is this one's; ``None``: whosever it is."""
        row = self.connection.execute(
            _JOB + "WHERE jobs.id = ?1 AND (?2 IS NULL OR jobs.owner = ?2)", (name, owner)
        ).fetchone()
        return None if row is None else _job(row)

    def trace(self, name: str) -> str:
        """``traceparent`` of the call that submitted a job; empty: none is known."""
        row = self.connection.execute(
            "SELECT parent FROM traces JOIN jobs ON number = job WHERE id = ?", (name,)
        ).fetchone()
        return "" if row is None else str(row["parent"])

    def recent(self, state: JobState | None, limit: int, after: str, owner: str | None = None) -> list[Job]:
        """Newest first; ``after``: only those older than this one. None if that is not there any more."""
        rows = self.connection.execute(
            f"{_JOB} WHERE (?1 IS NULL OR jobs.state = ?1) "  # noqa: S608 - a constant
            "AND (?2 = '' OR number < (SELECT number FROM jobs WHERE id = ?2)) "
            "AND (?4 IS NULL OR jobs.owner = ?4) ORDER BY number DESC LIMIT ?3",
            (state, after, limit, owner),
        )
        return [_job(row) for row in rows]

    def results(self, name: str, start: int, limit: int) -> tuple[list[bytes], int | None]:
        """Stored results from position ``start`` on, and the position after them if there are more."""
        rows = self.connection.execute(
            "SELECT position, result FROM items WHERE job = (SELECT number FROM jobs WHERE id = ?) AND position >= ? "
            "AND result IS NOT NULL ORDER BY position LIMIT ?",
            (name, start, limit + 1),
        ).fetchall()
        following = rows[limit]["position"] if len(rows) > limit else None
        return [row["result"] for row in rows[:limit]], following

    def claim(self, taken: Sequence[str], now: float) -> Job | None:
        """The next job to work on, which is running from now on: those left over from before a restart come first."""
        with self.transaction():
            rows = self.connection.execute(
                "SELECT id FROM jobs WHERE state IN ('queued', 'running') ORDER BY state = 'queued', number LIMIT ?",
                (len(taken) + 1,),
            )
            row = next((row for row in rows.fetchall() if row["id"] not in taken), None)
            if row is None:
                return None
            self.connection.execute(
                "UPDATE jobs SET state = 'running', started = coalesce(started, ?) WHERE id = ?", (now, row["id"])
            )
            return self._found(row["id"])

    def portion(self, name: str, limit: int) -> list[PendingItem]:
        """The next items without a result, those with fewer tries first: at most ``limit``, and not too many bytes."""
        rows = self.connection.execute(
            "SELECT items.rowid AS row, size FROM items JOIN jobs ON jobs.number = items.job "
            "WHERE jobs.id = ? AND result IS NULL ORDER BY tries, position LIMIT ?",
            (name, limit),
        ).fetchall()
        found: list[PendingItem] = []
        size = 0
        for entry in rows:
            size += entry["size"]
            if found and size > _PORTION_BYTES:
                break
            row = self.connection.execute(
                "SELECT position, id, tries, asked, data FROM items WHERE rowid = ?", (entry["row"],)
            ).fetchone()
            found.append(PendingItem(row["position"], row["id"], query_of(row["asked"], row["data"]), row["tries"]))
        return found

    def answer(self, name: str, answers: Sequence[Answer], again: Sequence[int]) -> None:
        """Keeps outcomes and drops what they were made from; items ``again`` have had one more try in vain.

        Does nothing for a job that is not running any more.
        """
        with self.transaction():
            row = self.connection.execute(
                "SELECT number FROM jobs WHERE id = ? AND state = 'running'", (name,)
            ).fetchone()
            if row is None:
                return
            number = row["number"]
            for entry in answers:
                decided = (entry.decision == kind for kind in DECISIONS)
                self.connection.execute(
                    "UPDATE jobs SET answered = answered + 1, failed = failed + ?, accept = accept + ?, "
                    "review = review + ?, reject = reject + ?, waiting_bytes = waiting_bytes - "
                    "(SELECT size FROM items WHERE job = ?5 AND position = ?6) WHERE number = ?5",
                    (entry.failed, *decided, number, entry.position),
                )
                self.connection.execute(
                    "UPDATE items SET result = ?, asked = NULL, data = NULL WHERE job = ? AND position = ?",
                    (entry.result, number, entry.position),
                )
            self.connection.executemany(
                "UPDATE items SET tries = tries + 1 WHERE job = ? AND position = ?",
                [(number, position) for position in again],
            )

    def end(self, name: str, state: JobState, error: str, now: float, message: Callable[[Job], bytes]) -> Job | None:
        """Ends a job: drops what it still holds of pictures and prompts, and makes its callback due.

        Returns the job as it is now, ``None`` if it has ended before. ``message`` makes the callback's body.
        """
        with self.transaction():
            changed = self.connection.execute(
                "UPDATE jobs SET state = ?, finished = ?, error = ?, waiting_bytes = 0 "
                "WHERE id = ? AND state IN ('queued', 'running')",
                (state, now, error, name),
            ).rowcount
            if not changed:
                return None
            self.connection.execute(
                "DELETE FROM items WHERE result IS NULL AND job = (SELECT number FROM jobs WHERE id = ?)", (name,)
            )
            self.connection.execute(
                "UPDATE callbacks SET body = ?, due = ?, give_up = ? "
                "WHERE job = (SELECT number FROM jobs WHERE id = ?)",
                (message(self._found(name)), now, now + self._settings.callbacks.give_up_seconds, name),
            )
            return self._found(name)

    def forget(self, ended_before: float) -> int:
        """Deletes jobs that ended before then, and the oldest ended ones beyond ``max_kept``; empties the log.

        Jobs whose callback is still to be delivered stay while there are no more than that. Returns how many went.
        """
        with self.transaction():
            gone = self.connection.execute(
                "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs LEFT JOIN callbacks ON job = number "
                "WHERE finished < ? AND due IS NULL)",
                (ended_before,),
            ).rowcount
            gone += self.connection.execute(
                "DELETE FROM jobs WHERE number IN (SELECT number FROM jobs LEFT JOIN callbacks ON job = number "
                "WHERE finished IS NOT NULL ORDER BY due IS NOT NULL, finished LIMIT "
                "max(0, (SELECT count(*) FROM jobs) - ?))",
                (self._settings.max_kept,),
            ).rowcount
        self.empty_log()
        return gone

    def empty_log(self) -> None:
        """Moves the write-ahead log into the file and truncates it, and gives free pages back."""
        self.connection.executescript("PRAGMA incremental_vacuum")  # execute() would free one page
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def totals(self) -> Totals:
        rows = self.connection.execute("SELECT state, count(*), sum(waiting_bytes) FROM jobs GROUP BY state").fetchall()
        oldest = self.connection.execute("SELECT min(created) FROM jobs WHERE state = 'queued'").fetchone()[0]
        return Totals({row[0]: row[1] for row in rows}, sum(row[2] for row in rows), oldest)

    def _check_room(self, size: int) -> None:
        jobs, waiting = self.connection.execute(
            "SELECT count(*), coalesce(sum(waiting_bytes), 0) FROM jobs WHERE state IN ('queued', 'running')"
        ).fetchone()
        limits = self._settings
        if jobs >= limits.max_jobs or waiting + size > limits.max_bytes:
            raise TooBusy(
                f"{jobs} jobs wait with {waiting:,} bytes; the server keeps {limits.max_jobs} with "
                f"{limits.max_bytes:,} bytes, and this one has {size:,}; try again later",
                retry_after=_RETRY,
            )

    def _found(self, name: str) -> Job:
        return _job(self.connection.execute(_JOB + "WHERE jobs.id = ?", (name,)).fetchone())


def _job(row: sqlite3.Row) -> Job:
    callback = None
    if row["url"] is not None:
        callback = JobCallback(
            parse(row["url"], "callback.url").host,
            row["callback_state"],
            row["attempts"],
            row["last_error"],
            row["due"],
        )
    return Job(
        id=row["id"],
        state=row["state"],
        items=row["items"],
        answered=row["answered"],
        failed=row["failed"],
        created=row["created"],
        started=row["started"],
        finished=row["finished"],
        policy=row["policy"],
        policy_version=row["policy_version"],
        error=row["error"],
        callback=callback,
        decisions={name: row[name] for name in DECISIONS if row[name]},
    )
