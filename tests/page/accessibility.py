"""What can be checked by rule on a rendered page."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Page

RULES = Path(__file__).with_suffix(".js").read_text()


def problems(page: Page) -> list[str]:
    """Everything that the rules find wrong with what is shown now, in words."""
    found: list[str] = page.evaluate(RULES)
    return found
