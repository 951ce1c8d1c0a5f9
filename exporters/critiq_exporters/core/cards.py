"""The tables of families, made from their cards."""

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


_SHORT = ("judges", "direction", "scope", "paper")


def table(cards: Iterable[Card], short: bool = False) -> str:
    """One row a family, as a Markdown table without a line break at its end. ``short``: what fits into the README."""
    columns = {title: field for title, field in _COLUMNS.items() if not short or title in _SHORT}
    lines = [f"| family | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for card in cards:
        cells = " | ".join(str(getattr(card, field)) for field in columns.values())
        lines.append(f"| **{card.title}** (`{card.family}`) | {cells} |")
    return "\n".join(lines)
