"""A real Redis: shared entries, a time to live, and what happens when it is slow, dead, full or filled by others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import redis as redis_client

from critiq_server.features.keys import Key
from critiq_server.features.network import PREFIX, RedisStore
from critiq_server.features.records import encode
from critiq_server.features.store import StoreError
from tests.server.features.entries import assert_same, entries, features, key
from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture(scope="module")
def shared() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
async def store(shared: RedisServer) -> AsyncIterator[RedisStore]:
    redis_client.Redis(port=shared.port).flushall()
    opened = RedisStore(shared.url, ttl_seconds=60, timeout_seconds=5)
    yield opened
    await opened.close()


async def test_what_is_put_is_found_by_others(store: RedisStore, shared: RedisServer) -> None:
    await store.put_many(entries(1, 2))
    other = RedisStore(shared.url, ttl_seconds=60, timeout_seconds=5)
    assert_same(await other.get_many([key(2), key(9), key(1)]), entries(1, 2))
    await other.close()


async def test_more_than_one_pipeline(store: RedisStore) -> None:
    many = entries(*range(300), width=4096)  # 2.4 MB
    await store.put_many(many)
    assert_same(await store.get_many(many), many)


async def test_nothing_is_asked_for_nothing(store: RedisStore) -> None:
    assert await store.get_many([]) == {}
    await store.put_many({})


async def test_entries_are_stored_under_their_version_and_expire(store: RedisStore, shared: RedisServer) -> None:
    await store.put_many(entries(1))
    client = redis_client.Redis(port=shared.port)
    assert client.keys() == [b"critiq:1:" + key(1)]
    assert 55_000 < client.pttl(PREFIX + key(1)) <= 60_000
    brief = RedisStore(shared.url, ttl_seconds=0.05, timeout_seconds=5)
    await brief.put_many(entries(2))
    await asyncio.sleep(0.1)
    assert await brief.get_many([key(2)]) == {}
    await brief.close()


async def test_damaged_entries_are_missing_and_are_put_again(shared: RedisServer) -> None:
    told: list[tuple[Key, str]] = []
    store = RedisStore(shared.url, 60, 5, lambda which, reason: told.append((which, reason)))
    client = redis_client.Redis(port=shared.port)
    client.set(PREFIX + key(1), encode(features(1))[:-3])
    client.set(PREFIX + key(2), b"")
    assert await store.get_many([key(1), key(2)]) == {}
    assert [which for which, _ in told] == [key(1), key(2)]
    await store.put_many(entries(1))
    assert_same(await store.get_many([key(1)]), entries(1))
    await store.close()


async def test_a_value_of_another_kind_is_missing(store: RedisStore, shared: RedisServer) -> None:
    client = redis_client.Redis(port=shared.port)
    client.lpush(PREFIX + key(1), "somebody's list")
    await store.put_many(entries(2))
    assert_same(await store.get_many([key(1), key(2)]), entries(2))


async def test_a_dead_server_is_an_error_at_once_and_serves_again_when_it_is_back() -> None:
    with redis_server() as server:
        store = RedisStore(server.url, ttl_seconds=60, timeout_seconds=60)
        await store.put_many(entries(1))
        server.kill()
        for attempt in (store.get_many([key(1)]), store.put_many(entries(1))):
            started = time.monotonic()
            with pytest.raises(StoreError, match="Redis does not serve"):
                await attempt
            assert time.monotonic() - started < 30
        server.start()
        assert await store.get_many([key(1)]) == {}
        await store.put_many(entries(1))
        assert_same(await store.get_many([key(1)]), entries(1))
        await store.close()


async def test_a_server_that_does_not_answer_is_given_up() -> None:
    with redis_server() as server:
        store = RedisStore(server.url, ttl_seconds=60, timeout_seconds=0.2)
        await store.put_many(entries(1))
        server.freeze()
        results = await asyncio.gather(*(store.get_many([key(number)]) for number in range(20)), return_exceptions=True)
        assert all(isinstance(result, StoreError) for result in results)
        server.thaw()
        # Late answers to questions given up must not be taken for answers to new ones.
        for _ in range(10):
            assert_same(await store.get_many([key(1)]), entries(1))
            assert await store.get_many([key(2)]) == {}
        await store.close()


async def test_a_full_server_still_gives_what_it_has() -> None:
    with redis_server("--maxmemory", "3mb", "--maxmemory-policy", "noeviction") as server:
        store = RedisStore(server.url, ttl_seconds=60, timeout_seconds=5)
        await store.put_many(entries(1))
        with pytest.raises(StoreError, match="maxmemory"):
            await store.put_many(entries(*range(2, 600), width=4096))
        assert_same(await store.get_many([key(1)]), entries(1))
        await store.close()


async def test_a_wrong_password_is_said() -> None:
    with redis_server("--requirepass", "secret") as server:
        store = RedisStore(server.url, ttl_seconds=60, timeout_seconds=5)
        with pytest.raises(StoreError, match=r"(?i)authentication"):
            await store.get_many([key(1)])
        await store.close()
        store = RedisStore(server.url.replace("127", ":secret@127"), ttl_seconds=60, timeout_seconds=5)
        await store.put_many(entries(1))
        await store.close()


def test_an_address_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(StoreError, match=r"features\.redis\.url"):
        RedisStore("http://127.0.0.1:1", 60, 1)
