"""The feature store in memory: bounded in bytes, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict

from critiq_server.features.keys import Key
from critiq_server.features.records import Features

_ENTRY_OVERHEAD = 512
"""Bytes that an entry costs beside its arrays' data: measured with tracemalloc on one scalar, rounded up."""


class MemoryStore:
    """Maps content keys to features. Used from the event loop only, so it needs no lock."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Key, Features] = OrderedDict()
        self._bytes = 0

    def get(self, key: Key) -> Features | None:
        """The features of ``key``, which become the most recently used; ``None`` where there are none."""
        features = self._entries.get(key)
        if features is not None:
            self._entries.move_to_end(key)
        return features

    def put(self, key: Key, features: Features) -> None:
        """Keeps ``features``; entries larger than the whole store are not kept."""
        size = _size(features)
        if size > self._max_bytes:
            return
        old = self._entries.pop(key, None)
        if old is not None:
            self._bytes -= _size(old)
        self._entries[key] = features
        self._bytes += size
        while self._bytes > self._max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= _size(dropped)

    @property
    def size_bytes(self) -> int:
        """What the entries take, in bytes, overhead included."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._entries)


def _size(features: Features) -> int:
    return _ENTRY_OVERHEAD + sum(array.nbytes for array in features.values())
