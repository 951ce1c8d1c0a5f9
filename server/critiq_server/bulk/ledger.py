"""What is done of a run, kept beside its parts, so that the same command goes on where a run was stopped.

    _critiq/run.json      what the run is: its input and settings, and their fingerprint
    _critiq/done-N.jsonl  units that are done, a line each; written in one piece, never changed
    part-N.parquet        a part for each unit
    _SUCCESS              the manifest, once all is done

A unit is done when a line says so and its part is there. Lines are written after parts: a part without a line, which a
killed run left, is made again under the same name. So each unit ends in exactly one part, whenever a run is killed.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from critiq_server.bulk.errors import BulkError, StorageError
from critiq_server.bulk.storage import TEMPORARY, Place
from critiq_server.bulk.units import Done, Unit, fingerprint

RUN = "_critiq/run.json"
SUCCESS = "_SUCCESS"
STOP = "_critiq/stop"
"""While this file is there, workers that share nothing but the storage begin no unit."""

_LINES = re.compile(r"_critiq/done-(\d{6})\.jsonl")
_PART = re.compile(r"part-\d{6}\.parquet")
_MANY = 32
"""Files of lines beyond which opening makes one of them."""
_SECONDS = 1.0
"""How long a line may wait for others: so much more work is done again after a kill."""


@dataclass(frozen=True)
class Identity:
    """What makes a run the same run. ``asked`` is what a person can read of it."""

    asked: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return fingerprint([self.asked])


class Ledger:
    """The record of one output. One process writes it.

    Args:
        output: where parts go.
        identity: what is asked now.
        restart: forget what is there, if it is ours.

    Raises:
        BulkError: the output is of another run, of something else, or another process writes it.
        StorageError: it cannot be read or written.
    """

    def __init__(self, output: Place, identity: Identity, *, restart: bool = False) -> None:
        self._output = output
        self._identity = identity
        self._waiting: list[Done] = []
        self._written_at = 0.0
        self._next = 0
        self.done: dict[int, Done] = {}
        self._lock = contextlib.ExitStack()
        self._lock.enter_context(_alone(output))
        try:
            self._open(restart)
        except BaseException:
            self._lock.close()
            raise

    def complete(self, units: Sequence[Unit]) -> bool:
        """Whether nothing is left to do: all parts are there, and the manifest."""
        return not self.left(units) and self._output.entry(SUCCESS) is not None

    def left(self, units: Sequence[Unit]) -> list[Unit]:
        """The units that are not done."""
        return [unit for unit in units if unit.number not in self.done]

    def add(self, done: Done) -> None:
        """Takes down that a unit's part is written."""
        self.done[done.unit] = done
        self._waiting.append(done)
        if time.monotonic() - self._written_at >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes the lines that wait."""
        if self._waiting:
            self._write(self._waiting)
            self._waiting = []
            self._written_at = time.monotonic()

    def ask_to_stop(self) -> None:
        """Tells workers that share nothing but the storage; where that fails they just work on."""
        with contextlib.suppress(StorageError):
            self._output.write(STOP, b"")

    def finish(self, units: Sequence[Unit], manifest: dict[str, Any]) -> dict[str, Any]:
        """Writes the manifest; returns it. Raises ``BulkError`` if a part is missing."""
        self.flush()
        parts = _parts(self._output)
        missing = [unit.part for unit in units if unit.number not in self.done or unit.part not in parts]
        if missing:
            raise BulkError(f"{len(missing)} parts are missing, for instance {missing[0]}; run the same command again")
        counts = summary(self.done.values())
        whole = {"format": 1, **self._identity.asked, "fingerprint": self._identity.fingerprint, **counts, **manifest}
        whole["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
        self._output.write(SUCCESS, json.dumps(whole, indent=2, ensure_ascii=False).encode())
        return whole

    def close(self) -> None:
        """Writes what waits, and lets others have the output."""
        try:
            self.flush()
        finally:
            self._lock.close()

    def _open(self, restart: bool) -> None:
        entries = {entry.path for entry in self._output.files()} if self._output.is_directory() else set()
        if restart and (RUN in entries or not entries):
            self._forget(entries)
            entries = set()
        if RUN not in entries:
            foreign = sorted(path for path in entries if not path.startswith("_critiq/"))
            if foreign:
                raise BulkError(
                    f"{self._output.uri} holds something else ({foreign[0]}); name a folder that is empty or new"
                )
            run = {**self._identity.asked, "fingerprint": self._identity.fingerprint}
            self._output.write(RUN, json.dumps(run, indent=2, ensure_ascii=False).encode())
        else:
            self._check(json.loads(_read(self._output, RUN)))
        for path in entries:
            if path.startswith(f"{TEMPORARY}/") or path == STOP:
                self._output.delete(path)
        self._read_lines(entries)

    def _check(self, run: dict[str, Any]) -> None:
        if run.pop("fingerprint", None) == self._identity.fingerprint:
            return
        asked = self._identity.asked
        changed = [name for name in {**run, **asked} if run.get(name) != asked.get(name)]
        shown = "; ".join(f"{name} was {_short(run.get(name))}, is {_short(asked.get(name))}" for name in changed)
        raise BulkError(
            f"{self._output.uri} is of another run: {shown or 'its format differs'}. Choose another --output, or start "
            "anew with --restart, which deletes what is there"
        )

    def _read_lines(self, entries: set[str]) -> None:
        files = sorted(path for path in entries if _LINES.fullmatch(path))
        for path in files:
            for line in _read(self._output, path).decode().splitlines():
                done = Done.from_json(line)
                if f"part-{done.unit:06d}.parquet" in entries:
                    self.done[done.unit] = done
        if files and (last := _LINES.fullmatch(files[-1])) is not None:
            self._next = int(last[1]) + 1
        if len(files) > _MANY:
            self._write(list(self.done.values()))
            for path in files:
                self._output.delete(path)

    def _write(self, lines: Sequence[Done]) -> None:
        text = "".join(f"{done.to_json()}\n" for done in lines)
        self._output.write(f"_critiq/done-{self._next:06d}.jsonl", text.encode())
        self._next += 1

    def _forget(self, entries: set[str]) -> None:
        """The manifest goes first and the identity last: what is left of a restart that was killed is restarted."""
        ours = [path for path in entries if path == SUCCESS or _PART.fullmatch(path) or path.startswith("_critiq/")]
        for path in sorted(ours, key=lambda path: (path != SUCCESS, path == RUN)):
            if path != "_critiq/lock":
                self._output.delete(path)


def summary(done: Iterator[Done] | Any) -> dict[str, Any]:
    """Counts over units: rows, rows that are scored, failures by code."""
    rows, failed = 0, dict[str, int]()
    for entry in done:
        rows += entry.rows
        for code, count in entry.failed.items():
            failed[code] = failed.get(code, 0) + count
    return {"rows": rows, "scored": rows - sum(failed.values()), "failed": dict(sorted(failed.items()))}


def _parts(output: Place) -> set[str]:
    return {entry.path for entry in output.files() if _PART.fullmatch(entry.path)}


def _read(output: Place, path: str) -> bytes:
    with output.open(path) as file:
        return file.read()


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


@contextlib.contextmanager
def _alone(output: Place) -> Iterator[None]:
    """Holds the output for this process, where it is local: two runs at once would do everything twice."""
    if not output.is_local:
        yield
        return
    import fcntl

    path = Path(output.uri) / "_critiq" / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise BulkError(f"cannot write to {output.uri}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BulkError(f"another run writes to {output.uri}; wait for it, or stop it") from None
        yield
