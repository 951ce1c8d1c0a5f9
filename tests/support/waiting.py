"""Waiting for something to become true, without guessing how long it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Returns as soon as ``condition()`` holds, letting the event loop run; fails after ``seconds``."""
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise AssertionError(f"did not come true within {seconds} s")
        await asyncio.sleep(0.001)


async def until_async(condition: Callable[[], Awaitable[bool]], seconds: float = 120.0, pause: float = 0.1) -> None:
    """The same with a condition that is asked of somebody else, every ``pause`` seconds."""
    limit = time.monotonic() + seconds
    while not await condition():
        if time.monotonic() > limit:
            raise AssertionError(f"did not come true within {seconds} s")
        await asyncio.sleep(pause)
