"""The stores below memory: disk, then network. What is found further down fills the stores above it.

Whoever looks something up here has missed it in memory already. Look-ups that come in one turn of the event loop go to
each store as one; what is to be kept is written later, in the background, by one writer that takes all that has come
since. A store that fails is left alone for a moment, and nobody waits for it or fails because of it: what is not found
is computed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import structlog

from critiq_server.features.keys import Key
from critiq_server.features.records import Features
from critiq_server.features.store import Store

logger = structlog.get_logger("critiq")

Operation = Literal["get", "put"]

FIRST_BACK_OFF = 1.0
LONGEST_BACK_OFF = 30.0
"""Seconds for which a store that failed is left alone: doubled with each failure in a row."""

MAX_UNWRITTEN_BYTES = 64 * 2**20
"""What may wait to be written; beyond it, what comes is not kept."""


@dataclass(frozen=True, slots=True)
class Report:
    """What one operation on one tier came to, for the metrics."""

    tier: str
    operation: Operation
    asked: int
    """Keys looked up or entries to write."""
    done: int
    """Keys found or entries written."""
    bytes: int
    """Of the arrays found or written."""
    seconds: float
    failed: bool = False
    skipped: bool = False
    """The tier was left alone because it failed a moment ago, or too much was waiting to be written."""


@dataclass(eq=False)
class Tier:
    """A store with its name in the metrics."""

    name: str
    store: Store
    writable: bool = True
    _failures: int = field(default=0, init=False)
    _rests_until: float = field(default=0.0, init=False)

    @property
    def rests(self) -> bool:
        return time.monotonic() < self._rests_until

    def failed(self, error: Exception) -> None:
        seconds = min(LONGEST_BACK_OFF, FIRST_BACK_OFF * 2**self._failures)
        self._failures += 1
        self._rests_until = time.monotonic() + seconds
        logger.warning("feature store failed: going on without it", tier=self.name, error=str(error), seconds=seconds)

    def worked(self) -> None:
        if self._failures:
            logger.info("feature store works again", tier=self.name)
        self._failures = 0


class LowerTiers:
    """Tiers from the nearest to the farthest. Made and used on the event loop."""

    def __init__(self, tiers: Sequence[Tier], on_report: Callable[[Report], None] = lambda report: None) -> None:
        self._tiers = tuple(tiers)
        self._on_report = on_report
        self._wanted: dict[Key, list[asyncio.Future[Features | None]]] = {}
        self._unwritten: dict[str, dict[Key, Features]] = {tier.name: {} for tier in self._tiers}
        self._unwritten_bytes = dict.fromkeys(self._unwritten, 0)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: dict[str, asyncio.Task[None]] = {}

    async def get(self, key: Key) -> Features | None:
        """The features of ``key`` from the nearest tier that has them; ``None`` where none does. Never raises."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Features | None] = loop.create_future()
        if not self._wanted:
            loop.call_soon(self._look_up_wanted)
        self._wanted.setdefault(key, []).append(future)
        return await future

    def put(self, key: Key, features: Features) -> None:
        """Keeps ``features`` in every tier that can be written to, some time soon."""
        for tier in self._tiers:
            self._put(tier, key, features)

    async def close(self, seconds: float = 5.0) -> None:
        """Writes what is waiting, for at most so many seconds, and closes the tiers."""
        writers = list(self._writers.values())
        if writers:
            await asyncio.wait(writers, timeout=seconds)
        for task in [*self._writers.values(), *self._tasks]:
            task.cancel()
        for tier in self._tiers:
            await tier.store.close()

    def _look_up_wanted(self) -> None:
        wanted, self._wanted = self._wanted, {}
        alive = {key: futures for key, futures in wanted.items() if not all(future.done() for future in futures)}
        if alive:
            task = asyncio.ensure_future(self._look_up(alive))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _look_up(self, wanted: Mapping[Key, Sequence[asyncio.Future[Features | None]]]) -> None:
        missing = list(wanted)
        passed: list[Tier] = []
        try:
            for tier in self._tiers:
                if not missing:
                    break
                found = await self._get(tier, missing)
                for key, features in found.items():
                    _answer(wanted[key], features)
                    for nearer in passed:
                        self._put(nearer, key, features)
                missing = [key for key in missing if key not in found]
                passed.append(tier)
        finally:  # whatever becomes of this task, nobody may wait for ever
            for key in missing:
                _answer(wanted[key], None)

    async def _get(self, tier: Tier, keys: list[Key]) -> dict[Key, Features]:
        if tier.rests:
            self._on_report(Report(tier.name, "get", len(keys), 0, 0, 0.0, skipped=True))
            return {}
        started = time.perf_counter()
        found: dict[Key, Features] = {}
        try:
            found = await tier.store.get_many(keys)
            tier.worked()
            failed = False
        except Exception as error:  # whatever is wrong with a store, no request fails for it
            tier.failed(error)
            failed = True
        size = sum(map(_bytes, found.values()))
        self._on_report(
            Report(tier.name, "get", len(keys), len(found), size, time.perf_counter() - started, failed=failed)
        )
        return found

    def _put(self, tier: Tier, key: Key, features: Features) -> None:
        if not tier.writable:
            return
        size = _bytes(features)
        if tier.rests or self._unwritten_bytes[tier.name] + size > MAX_UNWRITTEN_BYTES:
            self._on_report(Report(tier.name, "put", 1, 0, 0, 0.0, skipped=True))
            return
        self._unwritten[tier.name][key] = features
        self._unwritten_bytes[tier.name] += size
        if tier.name not in self._writers:
            self._writers[tier.name] = asyncio.ensure_future(self._write(tier))

    async def _write(self, tier: Tier) -> None:
        """Writes to one tier until nothing is waiting: a slow tier grows its batches and holds up no other."""
        while entries := self._unwritten[tier.name]:
            self._unwritten[tier.name] = {}
            self._unwritten_bytes[tier.name] = 0
            started = time.perf_counter()
            size, failed = sum(map(_bytes, entries.values())), False
            try:
                await tier.store.put_many(entries)
                tier.worked()
            except Exception as error:  # as above
                tier.failed(error)
                failed = True
            done = 0 if failed else len(entries)
            seconds = time.perf_counter() - started
            self._on_report(Report(tier.name, "put", len(entries), done, 0 if failed else size, seconds, failed=failed))
        del self._writers[tier.name]  # In the same turn that found nothing waiting: what comes next starts another.


def _answer(futures: Sequence[asyncio.Future[Features | None]], features: Features | None) -> None:
    for future in futures:
        if not future.done():
            future.set_result(features)


def _bytes(features: Features) -> int:
    return sum(array.nbytes for array in features.values())
