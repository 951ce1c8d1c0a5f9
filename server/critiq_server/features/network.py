"""The feature store of a fleet: Redis or Valkey, which all servers share.

Entries are plain values under ``critiq:1:<key>``, written with a time to live. Nothing here retries or waits long: a
feature that Redis does not give quickly is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from critiq_server.features.keys import Key
from critiq_server.features.records import VERSION, Features, RecordError, decode, encode
from critiq_server.features.store import StoreError

PREFIX = b"critiq:%d:" % VERSION
"""Records of another version have another prefix: old and new servers can share one Redis."""

_CONNECTIONS = 8
_PIPELINE_BYTES = 2**20
"""Bytes sent in one go: a larger pipeline would hold up other clients of the same Redis."""


class RedisStore:
    """A :class:`~critiq_server.features.store.Store` in Redis.

    Args:
        url: ``redis://[user:password@]host:port/database``, ``rediss://`` for TLS, ``unix://`` for a socket.
        ttl_seconds: how long an entry lives after it was written.
        timeout_seconds: for connecting, and for each answer.
        on_damaged: told of every entry that is there but damaged: it is as good as missing.

    Raises:
        StoreError: the URL makes no sense. Whether anyone listens there is found out by use.
    """

    def __init__(
        self,
        url: str,
        ttl_seconds: float,
        timeout_seconds: float,
        on_damaged: Callable[[Key, str], None] = lambda key, reason: None,
    ) -> None:
        self._ttl_ms = max(1, round(1000 * ttl_seconds))
        self._on_damaged = on_damaged
        try:
            pool: BlockingConnectionPool = BlockingConnectionPool.from_url(
                url,
                max_connections=_CONNECTIONS,
                timeout=timeout_seconds,
                socket_timeout=timeout_seconds,
                socket_connect_timeout=timeout_seconds,
                retry=Retry(NoBackoff(), 0),
            )
        except ValueError as error:
            raise StoreError(f"features.redis.url is no address of a Redis server: {error}") from error
        self._redis: Redis = Redis(connection_pool=pool)

    async def get_many(self, keys: Iterable[Key]) -> dict[Key, Features]:
        keys = list(keys)
        try:
            records = await self._redis.mget([PREFIX + key for key in keys])
        except (RedisError, OSError, TimeoutError) as error:
            raise _unusable(error) from error
        found: dict[Key, Features] = {}
        for key, record in zip(keys, records, strict=True):
            if record is None:
                continue
            try:
                found[key] = decode(cast(bytes, record))
            except RecordError as error:
                self._on_damaged(key, str(error))
        return found

    async def put_many(self, entries: Mapping[Key, Features]) -> None:
        try:
            pipeline, size = self._redis.pipeline(transaction=False), 0
            for key, features in entries.items():
                record = encode(features)
                pipeline.set(PREFIX + key, record, px=self._ttl_ms)
                size += len(record)
                if size >= _PIPELINE_BYTES:
                    await pipeline.execute()
                    size = 0
            await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise _unusable(error) from error

    async def close(self) -> None:
        await self._redis.aclose()
        await self._redis.connection_pool.disconnect()


def _unusable(error: Exception) -> StoreError:
    return StoreError(f"Redis does not serve ({type(error).__name__}: {error})")
