"""What a feature store outside this process is: a map from content keys to features, and the ways it can fail."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

from critiq_server.features.keys import Key
from critiq_server.features.records import Features


class StoreError(Exception):
    """A store cannot be used, now or at all; the message names it and says what to do."""


class StoreFormatError(StoreError):
    """The path holds something else, or a store of another format."""


class StoreDamaged(StoreError):
    """The store's file is cut short or altered."""


class StoreLocked(StoreError):
    """Another process has the store for itself."""


class StoreFull(StoreError):
    """There is no room: the file system is full, or an entry is larger than the store's limit."""


class Store(Protocol):
    """A store that answers some time later. Entries never change: a key names its content."""

    async def get_many(self, keys: Iterable[Key]) -> dict[Key, Features]:
        """The features of those ``keys`` that are there and intact. Raises ``StoreError`` if the store fails."""
        ...

    async def put_many(self, entries: Mapping[Key, Features]) -> None:
        """Keeps all ``entries``. Raises ``StoreError`` if the store fails."""
        ...

    async def close(self) -> None:
        """Lets go of files and connections."""
        ...
