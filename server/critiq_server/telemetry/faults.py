"""Faults of the server itself: the log gets the detail, the caller an id to quote."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Awaitable, Callable

import structlog

from critiq.errors import Internal
from critiq_server.telemetry.counters import FAULTS

logger = structlog.get_logger("critiq")


def internal(what: str, error: BaseException) -> Internal:
    """Logs ``error`` with its traceback and returns the error that the caller sees."""
    fault = secrets.token_hex(4)
    FAULTS.inc()
    logger.error("fault", fault=fault, what=what, exc_info=error)
    return Internal(f"the server failed (fault {fault}); its log has the details")


async def again_and_again(seconds: float, what: str, look: Callable[[], Awaitable[None] | None]) -> None:
    """Calls ``look`` after every so many seconds, for ever. If it fails, the log says so; the next may fare better."""
    while True:
        await asyncio.sleep(seconds)
        try:
            found = look()
            if inspect.isawaitable(found):
                await found
        except Exception as error:
            internal(what, error)
