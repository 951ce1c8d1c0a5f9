"""The label by which a caller tells one kind of traffic from another.

It travels beside the request, in a variable of the task that answers it: it is no part of what is asked, so it cannot
change keys, caching, or who shares a computation.
"""

from __future__ import annotations

from contextvars import ContextVar

HEADER = "critiq-label"
OTHER = "other"
caller_label: ContextVar[str] = ContextVar("caller_label", default="")


class Labels:
    """The labels that are kept apart; all others are one."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self.allowed = frozenset(allowed)

    def set(self, text: str | None) -> None:
        """Sets the label of what the current task asks; ``None``: the caller gave none."""
        if self.allowed:
            caller_label.set("" if not text else text if text in self.allowed else OTHER)
