"""The table of families, made from their cards."""

from __future__ import annotations

from collections.abc import Iterable

from critiq_exporters.core.exportable import Card

_COLUMNS = {
    "judges": "judges",
    "raw range": "raw_range",
    "direction": "direction",
    "scope": "scope",
    "paper": "paper",
    "code": "code_licence",
    "weights": "weights",
    "memory": "memory",
}


def table(cards: Iterable[Card]) -> str:
    """One row a family, as a Markdown table without a line break at its end."""
    lines = [f"| family | {' | '.join(_COLUMNS)} |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for card in cards:
        cells = " | ".join(str(getattr(card, field)) for field in _COLUMNS.values())
        lines.append(f"| **{card.title}** (`{card.family}`) | {cells} |")
    return "\n".join(lines)
