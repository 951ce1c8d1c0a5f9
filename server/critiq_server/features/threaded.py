"""A store on disk for the event loop: reads in one thread, writes in another, so that neither waits for the other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from critiq_server.features.disk import DiskStore
from critiq_server.features.keys import Key
from critiq_server.features.records import Features


class ThreadedDiskStore:
    """A :class:`~critiq_server.features.store.Store` over a :class:`~critiq_server.features.disk.DiskStore`."""

    def __init__(self, store: DiskStore) -> None:
        self._store = store
        self._reader = ThreadPoolExecutor(1, "critiq-disk-read")
        self._writer = ThreadPoolExecutor(1, "critiq-disk-write")

    async def get_many(self, keys: Iterable[Key]) -> dict[Key, Features]:
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._store.get_many, list(keys))

    async def put_many(self, entries: Mapping[Key, Features]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._writer, self._store.put_many, dict(entries))

    async def close(self) -> None:
        """Ends once the write under way has ended."""
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._writer, self._store.close)
        self._reader.shutdown()
        self._writer.shutdown()
