"""The report can be read in light and in dark: contrasts as WCAG 2.2 defines them, AA."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import critiq_evaluation.report

STYLE = (Path(critiq_evaluation.report.__file__).parent / "report.css").read_text()
LIGHT, DARK = (
    dict(re.findall(r"--([a-z0-9-]+):\s*(#[0-9a-f]{6})", block))
    for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
)


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_stands_out(theme: dict[str, str]) -> None:
    for ink in ("ink", "soft", "accent"):
        for ground in ("paper", "panel"):
            assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
    assert contrast(theme["ink"], theme["warn-panel"]) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_marks_stand_out(theme: dict[str, str]) -> None:
    for number in range(1, 7):
        assert contrast(theme[f"series-{number}"], theme["paper"]) >= 3, number


def test_the_themes_have_the_same_colours() -> None:
    assert LIGHT.keys() == DARK.keys()
