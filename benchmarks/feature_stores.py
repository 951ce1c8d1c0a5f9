"""Stores side by side: what one write and one look-up of features cost in each.

Every store gets the same encoded features under the same random keys. LMDB and Redis are critiq's own stores, decoding
and checksums included; a file for each feature and SQLite stand for what one might use instead, and hand over bytes
alone.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from critiq_server.features.disk import DiskStore
from critiq_server.features.keys import Key
from critiq_server.features.network import RedisStore
from critiq_server.features.records import Features, encode

Entries = dict[Key, Features]


@dataclass(frozen=True, slots=True)
class Costs:
    """Of one store. Rates are features a second; times are microseconds of one call."""

    store: str
    written: float
    written_singly: float
    read: float
    """In look-ups of as many as were written at once."""
    one_p50: float
    one_p99: float
    """Looking up one feature."""
    megabytes: float


Put = Callable[[Entries], Awaitable[None]]
Get = Callable[[Sequence[Key]], Awaitable[int]]
"""Returns how many were found."""


def random_entries(count: int, width: int, seed: int = 0) -> Entries:
    """Half-precision features of ``width`` under random keys."""
    generator = np.random.default_rng(seed)
    values = generator.standard_normal((count, width)).astype(np.float16).astype(np.float32)
    return {generator.bytes(32): {"feature": row} for row in values}


def compare_stores(root: Path, count: int, width: int, batch: int) -> list[Costs]:
    """Costs of every store there is on this machine; Redis only where it is installed."""
    entries, few = random_entries(count, width), random_entries(100, width, seed=1)
    measured = [
        asyncio.run(_lmdb(root / "lmdb", entries, few, batch)),
        asyncio.run(_files(root / "files", entries, few, batch)),
        asyncio.run(_sqlite(root / "store.sqlite", entries, few, batch)),
    ]
    if shutil.which("redis-server"):
        with _redis_server() as url:
            measured.append(asyncio.run(_redis(url, entries, few, batch)))
    return measured


async def _lmdb(path: Path, entries: Entries, few: Entries, batch: int) -> Costs:
    with DiskStore(path) as store:

        async def put(chunk: Entries) -> None:
            store.put_many(chunk)

        async def get(keys: Sequence[Key]) -> int:
            return len(store.get_many(keys))

        costs = await _measure("LMDB", put, get, entries, few, batch)
    return _sized(costs, path / "data.mdb")


async def _redis(url: str, entries: Entries, few: Entries, batch: int) -> Costs:
    store = RedisStore(url, ttl_seconds=3600, timeout_seconds=30)

    async def get(keys: Sequence[Key]) -> int:
        return len(await store.get_many(keys))

    costs = await _measure("Redis", store.put_many, get, entries, few, batch)
    await store.close()
    return costs


async def _files(path: Path, entries: Entries, few: Entries, batch: int) -> Costs:
    for number in range(256):
        (path / f"{number:02x}").mkdir(parents=True)

    def place(key: Key) -> Path:
        return path / key[:1].hex() / key.hex()

    async def put(chunk: Entries) -> None:
        for key, features in chunk.items():
            partial = place(key).with_suffix(".part")
            with partial.open("wb") as file:
                file.write(encode(features))
                file.flush()
                os.fsync(file.fileno())
            partial.replace(place(key))

    async def get(keys: Sequence[Key]) -> int:
        return sum(1 for key in keys if place(key).read_bytes())

    costs = await _measure("a file each", put, get, entries, few, batch)
    return _sized(costs, path)


async def _sqlite(path: Path, entries: Entries, few: Entries, batch: int) -> Costs:
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE features (key BLOB PRIMARY KEY, record BLOB) WITHOUT ROWID")

    async def put(chunk: Entries) -> None:
        with database:
            rows = [(key, encode(features)) for key, features in chunk.items()]
            database.executemany("INSERT OR IGNORE INTO features VALUES (?, ?)", rows)

    async def get(keys: Sequence[Key]) -> int:
        statement = f"SELECT record FROM features WHERE key IN ({','.join('?' * len(keys))})"  # noqa: S608 - marks only
        return len(database.execute(statement, list(keys)).fetchall())

    costs = await _measure("SQLite", put, get, entries, few, batch)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()
    return _sized(costs, path)


async def _measure(name: str, put: Put, get: Get, entries: Entries, few: Entries, batch: int) -> Costs:
    keys = list(entries)
    chunks = [keys[start : start + batch] for start in range(0, len(keys), batch)]
    started = time.perf_counter()
    for chunk in chunks:
        await put({key: entries[key] for key in chunk})
    written = time.perf_counter() - started
    started = time.perf_counter()
    for key, features in few.items():
        await put({key: features})
    singly = time.perf_counter() - started
    order = np.random.default_rng(2).permutation(len(keys))
    shuffled = [keys[number] for number in order]
    started = time.perf_counter()
    for start in range(0, len(keys), batch):
        assert await get(shuffled[start : start + batch])
    read = time.perf_counter() - started
    times = []
    for key in shuffled[: min(len(keys), 5000)]:
        begun = time.perf_counter()
        assert await get([key]) == 1
        times.append(time.perf_counter() - begun)
    p50, p99 = np.percentile(times, [50, 99]) * 1e6
    return Costs(name, len(keys) / written, len(few) / singly, len(keys) / read, p50, p99, 0.0)


def _sized(costs: Costs, path: Path) -> Costs:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    size = sum(file.stat().st_blocks * 512 for file in files)
    return Costs(
        costs.store, costs.written, costs.written_singly, costs.read, costs.one_p50, costs.one_p99, size / 2**20
    )


@contextmanager
def _redis_server() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.01)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.terminate()
        process.wait()
