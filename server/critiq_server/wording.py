"""How error messages show what a caller sent."""

from __future__ import annotations

_SHOWN = 80


def quoted(text: str) -> str:
    """``text`` escaped and in quotation marks, cut after 80 characters: gRPC drops errors whose text is too long."""
    return repr(text) if len(text) <= _SHOWN else repr(text[:_SHOWN]) + "…"
