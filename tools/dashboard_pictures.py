"""Draws the dashboard's rows from a Prometheus's answers: what Grafana would draw, plainer."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes

from tools.dashboard_answers import Asked, answer, asked, named, shown

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import FuncFormatter

COLUMNS = 24
STEPS = 120
MOST = 8
"""Series drawn of each panel."""
Lines = list[tuple[str, np.ndarray[Any, Any], np.ndarray[Any, Any]]]


def draw(http: httpx.Client, rate: str, seconds: float, folder: Path) -> Iterator[Path]:
    """A PNG of each row over the last ``seconds``; yields their paths."""
    end = time.time()
    panels = [list(group) for _, group in groupby(asked(rate), key=lambda question: question.panel["id"])]
    for number, (row, group) in enumerate(groupby(panels, key=lambda panel: panel[0].row), start=1):
        shown_panels = list(group)
        places = [panel[0].panel["gridPos"] for panel in shown_panels]
        top = min(place["y"] for place in places)
        height = max(place["y"] + place["h"] for place in places) - top
        figure = plt.figure(figsize=(16, 0.42 * height + 0.6), layout="constrained")
        figure.suptitle(row, x=0.01, ha="left", fontweight="bold")
        grid = figure.add_gridspec(height, COLUMNS)
        for panel, place in zip(shown_panels, places, strict=True):
            y, x = place["y"] - top, place["x"]
            axes = figure.add_subplot(grid[y : y + place["h"], x : x + place["w"]])
            axes.set_title(panel[0].panel["title"], fontsize=9, loc="left")
            _panel(axes, http, panel, end - seconds, end)
        words = re.sub("[^a-z]+", "-", row.lower()).strip("-")
        path = folder / f"dashboard-{number}-{words}.png"
        figure.savefig(path, dpi=70)
        plt.close(figure)
        yield path


def _panel(axes: Axes, http: httpx.Client, panel: list[Asked], start: float, end: float) -> None:
    kind, unit = panel[0].panel["type"], panel[0].panel["fieldConfig"]["defaults"]["unit"]
    if kind == "stat":
        present = answer(http, panel[0])
        axes.axis("off")
        text = shown(present[0][1], unit) if present else "-"
        axes.text(0.5, 0.4, text, ha="center", va="center", fontsize=18, color="tab:green")
        return
    lines = [line for question in panel for line in _lines(http, question, start, end)]
    if kind == "heatmap":
        _heatmap(axes, lines, start)
        return
    for name, times, values in lines[:MOST]:
        axes.plot(times - start, values, label=name, linewidth=1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value, unit)))
    if "min" in panel[0].panel["fieldConfig"]["defaults"]:
        axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)
    if any(name for name, *_ in lines):
        axes.legend(fontsize=6, loc="upper left", ncols=2, framealpha=0.6)


def _heatmap(axes: Axes, lines: Lines, start: float) -> None:
    """Cumulative buckets as shares of each moment."""
    buckets = sorted(lines, key=lambda line: float(line[0]))
    counts = np.diff(np.array([values for _, _, values in buckets]), axis=0, prepend=0)
    bounds = [float(name) for name, *_ in buckets[:-1]]
    times = buckets[0][1] - start
    axes.pcolormesh(times, [0, *bounds], counts[:-1, 1:], cmap="Blues")
    axes.tick_params(labelsize=7)


def _lines(http: httpx.Client, question: Asked, start: float, end: float) -> Lines:
    step = (end - start) / STEPS
    parameters = {"query": question.expression, "start": f"{start}", "end": f"{end}", "step": f"{step:.3f}"}
    response = http.get("/api/v1/query_range", params=parameters).raise_for_status()
    moments = start + step * np.arange(STEPS + 1)
    lines = []
    for entry in response.json()["data"]["result"]:
        points = {round((float(at) - start) / step): float(value) for at, value in entry["values"]}
        values = np.array([points.get(number, np.nan) for number in range(STEPS + 1)])
        lines.append((named(question.legend, entry["metric"]), moments, values))
    return lines
