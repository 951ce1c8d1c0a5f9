"""Being asked to stop, and being asked again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

logger = structlog.get_logger("critiq")

_SAME_SIGNAL = 0.5
"""Seconds within which a signal is the same one again: a wrapper may tell a process and its group of one Ctrl-C."""


class Stopping:
    """Set by the first signal.

    Args:
        at_once: called at a second one, which does not wait for what is under way.
    """

    def __init__(self, at_once: Callable[[], None]) -> None:
        self.asked = asyncio.Event()
        self._at_once = at_once
        self._asked_at = 0.0

    def ask(self) -> None:
        """A signal came."""
        if not self.asked.is_set():
            self._asked_at = time.monotonic()
            self.asked.set()
        elif time.monotonic() - self._asked_at > _SAME_SIGNAL:
            logger.warning("stopping at once")
            self._at_once()
