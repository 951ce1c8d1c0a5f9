"""Figures as SVG: scores against ratings with the fitted curve, and agreement by group."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from critiq_evaluation.judging import Comparison

_INK = "#1b1f24"
_FAINT = "#9aa4af"
# Okabe and Ito's colours, told apart by people who see fewer of them.
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_MOST_VECTOR_POINTS = 2000
"""More points than that are drawn as pixels, or the file grows with the dataset."""
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "critiq",
    "text.parse_math": False,  # a group may be called anything
    "font.family": "sans-serif",
    "font.sans-serif": ["system-ui", "Segoe UI", "Helvetica", "Arial", "DejaVu Sans"],
    "font.size": 9,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


@dataclass(frozen=True)
class Drawing:
    """``svg`` stands alone; ``alternative`` says in words what it shows."""

    name: str
    rating: str
    title: str
    alternative: str
    svg: str

    def themed(self) -> str:
        """The SVG element for a page whose style sheet gives ``--ink``, ``--faint`` and ``--series-1`` to ``-6``."""
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        names = {_INK: "ink", _FAINT: "faint"} | {colour: f"series-{i}" for i, colour in enumerate(_SERIES, 1)}
        for colour, name in names.items():
            svg = svg.replace(colour, f"var(--{name})")
        # An id may stand once in a page.
        svg = re.sub(r'\bid="', f'id="{self.name}-', svg)
        svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{self.name}-", svg)
        alternative = _escape(self.alternative)
        return svg.replace("<svg ", f'<svg role="img" aria-label="{alternative}" ', 1)


def scatter(entry: Comparison, name: str, series: int) -> Drawing | None:
    """Scores against ratings; ``None`` where there are no pictures with both."""
    if not entry.points:
        return None
    x = np.array([point.score for point in entry.points])
    y = np.array([point.rating for point in entry.points])
    agreement = entry.whole.agreement
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(4.6, 3.5)
        size, alpha = (16, 0.55) if len(x) <= 500 else (6, 0.35)
        axes.scatter(
            x, y, s=size, alpha=alpha, color=_colour(series), linewidths=0, rasterized=len(x) > _MOST_VECTOR_POINTS
        )
        drawn = agreement.fit.state == "ok" and agreement.fit.name != "none"
        if drawn:
            at = np.linspace(x.min(), x.max(), 200)
            axes.plot(at, agreement.fit(at), color=_INK, linewidth=1.6)
        raw = "score, negated" if entry.negated else "raw score"
        axes.set_xlabel(f"{entry.pair.dimension}: {raw}")
        axes.set_ylabel(f"people: {entry.pair.rating}" + (", negated" if entry.rating_negated else ""))
        svg = _svg(figure)
    curve = f"with the fitted curve {agreement.fit.name}" if drawn else "without a curve"
    figures = "no correlation is defined" if agreement.srcc is None else f"SRCC {agreement.srcc:.4f}"
    return Drawing(
        name,
        entry.pair.rating,
        f"{entry.title} against {entry.pair.rating}",
        f"Scatter plot of {len(x)} pictures, {entry.title} against {entry.pair.rating}, {curve}: {figures}",
        svg,
    )


def group_bars(chosen: Sequence[Comparison], group: str, name: str, series: Sequence[int]) -> Drawing | None:
    """SRCC of each model by the kinds of one group; ``None`` where no kind has one."""
    kinds = list(dict.fromkeys(row.part for entry in chosen for row in entry.groups[group]))
    values = [
        {row.part: row.agreement.srcc for row in entry.groups[group] if row.agreement.srcc is not None}
        for entry in chosen
    ]
    if not any(values):
        return None
    thickness = 0.8 / len(chosen)
    with mpl.rc_context(_STYLE):
        figure, axes = _axes(6.4, max(1.8, 0.6 + len(kinds) * (0.16 + 0.13 * len(chosen))))
        for place, (entry, found) in enumerate(zip(chosen, values, strict=True)):
            at = np.arange(len(kinds)) - 0.4 + thickness * (place + 0.5)
            heights = [found.get(kind, 0.0) for kind in kinds]
            axes.barh(at, heights, thickness * 0.9, color=_colour(series[place]), label=entry.title)
        axes.set_yticks(range(len(kinds)), kinds)
        axes.invert_yaxis()
        axes.axvline(0, color=_FAINT, linewidth=0.8)
        for entry, number in zip(chosen, series, strict=True):
            if entry.whole.agreement.srcc is not None:
                axes.axvline(entry.whole.agreement.srcc, color=_colour(number), linewidth=1, linestyle=":")
        axes.set_xlabel("SRCC (dotted: all pictures)")
        axes.grid(axis="x", color=_FAINT, alpha=0.3, linewidth=0.6)
        axes.set_axisbelow(True)
        if len(chosen) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, ncols=2, borderaxespad=0.3)
        svg = _svg(figure)
    rating = chosen[0].pair.rating
    return Drawing(
        name,
        rating,
        f"Agreement with {rating} by {group}",
        f"Bars of SRCC with {rating} by {group}; the table has the figures",
        svg,
    )


def _axes(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.patch.set_alpha(0)
    return figure, axes


def _colour(series: int) -> str:
    return _SERIES[series % len(_SERIES)]


def _svg(figure: Figure) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", dpi=150, metadata={"Date": None})
    return text.getvalue()


def _escape(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
