"""What callers have spent of their limits, counted together by several processes of one machine.

Each count is a short transaction of LMDB; while one process writes, the others wait for it, some microseconds. A
process that is killed while it writes holds nobody up; one that is *stopped* just then does until it goes on.

Where the file fails, each process counts for itself, and tries now and then to come back as a new one would.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import lmdb
import structlog

from critiq.errors import TooBusy
from critiq_server.security.counts_file import Store, open_store, pack, unpack
from critiq_server.security.keys import KeysError
from critiq_server.security.limits import Spent

logger = structlog.get_logger("critiq.audit")

_MOST_CALLERS = 100_000
_PAUSE_SECONDS = 10.0
"""Before a store that failed is tried again."""


class SharedCounts:
    """:class:`~critiq_server.security.limits.Counts` of the processes that were given the same directory.

    Args:
        directory: on a local disk; made if it is not there.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._store: Store | None = None
        self._failed_at = float("-inf")
        self._left: deque[bytes] = deque()
        """Whose calls have ended while this process was writing: as garbage that was collected just then."""

    async def open(self) -> None:
        """Raises ``KeysError`` if the directory is none to keep counts in. A full or failing disk is only warned of."""
        try:
            self._store = await asyncio.to_thread(open_store, self._directory)
        except (lmdb.Error, OSError) as error:
            self._fail(error)

    def spend(self, of: bytes, here: Spent, spend: Callable[[], TooBusy | None]) -> TooBusy | None:
        """See ``Counts``."""
        if (store := self._store) is None:
            return spend()
        spent, refusal = False, None
        try:
            with store.writing(store.spent) as transaction:
                unpack(transaction.get(of), here)
                refusal, spent = spend(), True
                transaction.put(of, pack(here))
            self._settle(store)
        except lmdb.Error as error:
            self._fail(error)
        return refusal if spent else spend()

    def elsewhere(self, of: bytes) -> int:
        """See ``Counts``."""
        if (store := self._store) is None:
            return 0
        try:
            with store.environment.begin(store.calls) as transaction:
                return store.elsewhere(transaction, of)
        except lmdb.Error as error:
            self._fail(error)
            return 0

    def enter(self, of: bytes, check: Callable[[int], None]) -> bytes | None:
        """See ``Counts``."""
        store = self._store
        if store is not None:
            try:
                with store.writing(store.calls) as transaction:
                    check(store.elsewhere(transaction, of))
                    store.add(transaction, of, 1)
                self._settle(store)
                return store.owner
            except lmdb.Error as error:
                self._fail(error)
        check(0)
        return None

    def leave(self, of: bytes, entered: bytes | None) -> None:
        """See ``Counts``."""
        store = self._store
        if store is None or store.owner != entered:
            return  # what it counted then has gone with the store that failed
        self._left.append(of)
        try:
            self._settle(store)
        except lmdb.Error as error:
            self._fail(error)

    async def look(self) -> None:
        """Forgets calls of processes that are gone and callers beyond the most; tries a store that failed anew."""
        if self._store is None:
            if time.monotonic() - self._failed_at >= _PAUSE_SECONDS:
                await self._come_back()
            return
        try:
            self._store.stay()
            self._store.forget_the_dead()
            self._settle(self._store)
            for _ in self._store.forget_the_oldest(_MOST_CALLERS):
                await asyncio.sleep(0)
                if self._store is None:
                    return
        except (lmdb.Error, OSError) as error:
            self._fail(error)

    def close(self) -> None:
        """Others see at once that no calls are under way here."""
        if self._store is not None:
            self._store.close()
            self._store = None
            self._left.clear()

    def _settle(self, store: Store) -> None:
        while self._left and not store.busy:
            with store.writing(store.calls) as transaction:
                store.add(transaction, self._left.popleft(), -1)

    async def _come_back(self) -> None:
        try:
            self._store = await asyncio.to_thread(open_store, self._directory)
        except (KeysError, lmdb.Error, OSError):
            self._failed_at = time.monotonic()  # that it fails has been said
        else:
            logger.info("the limits of callers hold over all processes again")

    def _fail(self, error: Exception) -> None:
        self.close()
        self._failed_at = time.monotonic()
        logger.warning(
            "the limits of callers are counted by this process alone until their directory can be written again",
            directory=str(self._directory),
            why=str(error),
        )
