"""Faults of the server itself: the log gets the detail, the caller an id to quote."""

from __future__ import annotations

import secrets

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
