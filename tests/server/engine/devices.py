"""A device for batchers whose batches end when the test says so."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

from critiq.errors import CritiqError
from critiq_server.engine.batcher import Batcher
from critiq_server.engine.demand import Call, Priority
from tests.support.waiting import until


class Device:
    """Records its batches; while ``held`` each batch waits for a permit. Answers ``("done", input)``."""

    def __init__(self, *, held: bool = False) -> None:
        self.batches: list[list[Any]] = []
        self.held = held
        self._permits = threading.Semaphore(0)

    def compute(self, items: list[Any]) -> Sequence[Any | CritiqError]:
        self.batches.append(list(items))
        if self.held and not self._permits.acquire(timeout=120):
            raise AssertionError("nobody let the batch go")
        return [("done", item) for item in items]

    def let_go(self, batches: int = 1) -> None:
        """Lets so many batches end."""
        self._permits.release(batches)

    def release(self) -> None:
        """Holds nothing from now on."""
        self.held = False
        self._permits.release(10_000)

    @property
    def computed(self) -> list[Any]:
        return [item for batch in self.batches for item in batch]


def in_an_hour(priority: Priority = Priority.INTERACTIVE) -> Call:
    return Call(asyncio.get_running_loop().time() + 3600, priority)


def expired() -> Call:
    return Call(asyncio.get_running_loop().time() - 1)


async def occupied(device: Device, batcher: Batcher[Any, Any]) -> list[asyncio.Task[Any]]:
    """Keeps every worker of ``batcher`` busy with an item of its own; the answers' tasks."""
    device.held = True
    tasks = []
    for worker in range(batcher.workers):
        before = len(device.batches)
        tasks.append(submit(batcher, f"busy {worker}"))
        await until(lambda before=before: len(device.batches) > before)  # type: ignore[misc]
    return tasks


def submit(
    batcher: Batcher[Any, Any], item: Any, *, bucket: Any = "one", demand: Call | None = None
) -> asyncio.Task[Any]:
    return asyncio.ensure_future(batcher.submit(item, bucket, demand or in_an_hour()))


async def queued(batcher: Batcher[Any, Any], items: Sequence[Any], **options: Any) -> list[asyncio.Task[Any]]:
    """Submits items while the device is busy; returns once they are in the queue."""
    before = batcher.waiting
    tasks = [submit(batcher, item, **options) for item in items]
    await until(lambda: batcher.waiting == before + len(items))
    return tasks


Compute = Callable[[list[Any]], Sequence[Any]]
