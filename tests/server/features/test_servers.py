"""Servers with stores below memory: one profits from another's work, and no fault of a store is a caller's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from critiq_server.app import App
from critiq_server.features.disk import DiskStore
from critiq_server.features.files import DATA_FILE
from critiq_server.images.source import EncodedImage
from critiq_server.listening import StartError
from critiq_server.queries import Query
from critiq_server.settings import Settings
from tests.support import requests
from tests.support.bundles import write_bundle
from tests.support.redis_server import RedisServer, redis_server
from tests.support.servers import make_settings, running
from tests.support.waiting import until

ENCODER = ["tiny/image_encoder"]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundles")
    return tmp_path / "bundles"


def with_stores(bundles: Path, **stores: Any) -> Settings:
    """A server whose image encoder's outputs go to ``stores``; other stages' outputs do not."""
    return make_settings(bundles, features={"also": ENCODER, **stores})


async def brightness(app: App, level: int) -> float:
    result = await app.service.score(Query(EncodedImage(requests.flat(level)), "a red cat"))
    assert result["wordiness"].raw == pytest.approx(level / 255 * 5, abs=1e-5)
    return result["brightness"].raw


def computed(app: App, stage: str = "image_encoder") -> float:
    """Items that the stage's runtime has computed."""
    return app.metrics.registry.get_sample_value("critiq_batch_size_sum", {"model": "tiny", "stage": stage}) or 0.0


def lookups(app: App, tier: str, outcome: str) -> float:
    labels = {"tier": tier, "outcome": outcome}
    return app.metrics.registry.get_sample_value("critiq_feature_lookups_total", labels) or 0.0


def writes(app: App, tier: str, outcome: str = "written") -> float:
    labels = {"tier": tier, "outcome": outcome}
    return app.metrics.registry.get_sample_value("critiq_feature_writes_total", labels) or 0.0


async def test_two_servers_profit_from_each_others_work(bundles: Path, redis: RedisServer) -> None:
    settings = with_stores(bundles, redis={"url": redis.url})
    async with running(settings) as one, running(settings) as other:
        for level in range(10):
            await brightness(one, level)
        await until(lambda: writes(one, "network") == 10)
        for level in range(10, 20):
            await brightness(other, level)
        await until(lambda: writes(other, "network") == 10)
        assert computed(one) == computed(other) == 10
        for level in range(20):
            assert await brightness(one, level) == pytest.approx(level / 255, abs=1e-6)
            assert await brightness(other, level) == await brightness(one, level)
        assert computed(one) == computed(other) == 10
        assert lookups(one, "network", "hit") == lookups(other, "network", "hit") == 10
        # What costs less than a round trip stays in memory: heads and text were computed by both.
        assert computed(other, "head") == 20
        assert computed(other, "text_encoder") == 1


async def test_a_score_says_whether_it_came_from_a_store(bundles: Path, tmp_path: Path) -> None:
    settings = with_stores(bundles, disk={"path": tmp_path / "store"})
    query = Query(EncodedImage(requests.flat(7)), "a red cat")
    async with running(settings) as app:
        assert not (await app.service.score(query))["brightness"].from_store
    async with running(settings) as app:
        result = await app.service.score(query)
        assert result["brightness"].from_store
        assert not result["wordiness"].from_store
        assert computed(app) == 0


async def test_a_disk_keeps_what_was_computed_over_a_restart(bundles: Path, tmp_path: Path, redis: RedisServer) -> None:
    settings = with_stores(bundles, disk={"path": tmp_path / "store"}, redis={"url": redis.url})
    async with running(settings) as app:
        await asyncio.gather(*(brightness(app, level) for level in range(30)))
    async with running(settings) as app:
        await asyncio.gather(*(brightness(app, level) for level in range(30)))
        assert computed(app) == 0
        assert lookups(app, "disk", "hit") == 30
        assert lookups(app, "network", "hit") == 0


async def test_the_network_fills_an_empty_disk(bundles: Path, tmp_path: Path, redis: RedisServer) -> None:
    async with running(with_stores(bundles, redis={"url": redis.url})) as app:
        await brightness(app, 1)
    settings = with_stores(bundles, disk={"path": tmp_path / "store"}, redis={"url": redis.url})
    async with running(settings) as app:
        await brightness(app, 1)
        assert lookups(app, "network", "hit") == 1
    with DiskStore(tmp_path / "store", read_only=True) as store:
        assert store.status().entries == 1


async def test_a_mounted_store_is_read_and_never_written(bundles: Path, tmp_path: Path) -> None:
    path = tmp_path / "store"
    async with running(with_stores(bundles, disk={"path": path})) as app:
        await brightness(app, 1)
    before = (path / DATA_FILE).read_bytes()
    async with running(with_stores(bundles, disk={"path": path, "read_only": True})) as app:
        await brightness(app, 1)
        assert computed(app) == 0
        await brightness(app, 2)
        assert computed(app) == 1
    assert (path / DATA_FILE).read_bytes() == before


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_store_that_cannot_be_used_stops_the_start(bundles: Path, tmp_path: Path, read_only: bool) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / DATA_FILE).write_bytes(b"not a store " * 10_000)
    app = App(with_stores(bundles, disk={"path": tmp_path / "store", "read_only": read_only}))
    with pytest.raises(StartError, match=r"no LMDB file"):
        await app.start()


async def test_without_redis_servers_go_on(bundles: Path, redis: RedisServer) -> None:
    redis.kill()
    async with running(with_stores(bundles, redis={"url": redis.url})) as app:
        started = time.monotonic()
        for level in range(50):
            assert await brightness(app, level) == pytest.approx(level / 255, abs=1e-6)
        assert time.monotonic() - started < 40
        assert lookups(app, "network", "error") + lookups(app, "network", "skipped") == 50
        # It was asked once in a while, not for every picture.
        assert 1 <= lookups(app, "network", "error") < 10


async def test_redis_killed_and_restarted_under_load(
    bundles: Path, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("critiq_server.features.tiers.FIRST_BACK_OFF", 0.05)
    monkeypatch.setattr("critiq_server.features.tiers.LONGEST_BACK_OFF", 0.2)
    settings = make_settings(bundles, engine={"store_mb": 0}, features={"also": ENCODER, "redis": {"url": redis.url}})
    async with running(settings) as app:
        answered = 0
        stop = False

        async def caller(first: int) -> None:
            nonlocal answered
            level = first
            while not stop:
                level = (level + 7) % 256
                assert await brightness(app, level) == pytest.approx(level / 255, abs=1e-6)
                answered += 1

        async def goes_on() -> None:
            seen = answered
            await until(lambda: answered > seen + 100)

        callers = [asyncio.ensure_future(caller(n)) for n in range(8)]
        await until(lambda: lookups(app, "network", "hit") > 50)
        redis.kill()
        await goes_on()
        assert lookups(app, "network", "error") + lookups(app, "network", "skipped") > 0
        redis.start()
        hits = lookups(app, "network", "hit")
        await until(lambda: lookups(app, "network", "hit") > hits + 50)
        redis.freeze()
        await goes_on()
        redis.thaw()
        hits = lookups(app, "network", "hit")
        await until(lambda: lookups(app, "network", "hit") > hits + 50)
        stop = True
        await asyncio.gather(*callers)  # none failed


async def test_a_disk_that_fails_while_serving_is_a_miss(
    bundles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(with_stores(bundles, disk={"path": tmp_path / "store"})) as app:
        await brightness(app, 1)
        await until(lambda: writes(app, "disk") == 1)

        def fail(*_: Any) -> Any:
            raise OSError("input/output error")

        monkeypatch.setattr(DiskStore, "get_many", fail)
        monkeypatch.setattr(DiskStore, "put_many", fail)
        assert await brightness(app, 2) == pytest.approx(2 / 255, abs=1e-6)
        assert lookups(app, "disk", "error") == 1
