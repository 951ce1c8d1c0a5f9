"""How late the event loop is: the first sign that one core is not enough."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter

EVERY = 0.25
"""Seconds between looks."""


async def watch_lag(observe: Callable[[float], None]) -> None:
    """Tells ``observe`` by how many seconds a timer of the event loop came late, for ever."""
    while True:
        due = perf_counter() + EVERY
        await asyncio.sleep(EVERY)
        observe(max(0.0, perf_counter() - due))
