"""A threshold's curves as PNG: precision, recall and pass rate by threshold, precision by recall, and the cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from critiq_evaluation.calibration.figures import BLUE, INK, ORANGE, STYLE, save
from critiq_evaluation.thresholds import Curves, Threshold

_GREEN = "#009e73"


def draw(lines: Curves, chosen: Threshold, quantity: str, path: Path) -> Path:
    """Writes the picture. ``quantity`` is what the threshold is on, in words."""
    at = lines.thresholds
    where: Any = "pre" if at[0] <= at[-1] else "post"
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 3.4), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for axes in (left, right):
            axes.axvline(chosen.value, color=INK, linewidth=1, linestyle="--")
            if "threshold" in chosen.intervals:
                found = chosen.intervals["threshold"]
                axes.axvspan(found.low, found.high, color=INK, alpha=0.1, linewidth=0)
            axes.set_xlabel(f"threshold on {quantity}")
        for name, colour in (("precision", BLUE), ("recall", ORANGE), ("pass_rate", _GREEN)):
            left.step(at, getattr(lines, name), where=where, color=colour, label=name.replace("_", " "))
        left.set_ylim(-0.02, 1.02)
        left.legend(frameon=False)
        left.set_title("by threshold; grey: where it lies in 95 % of resamples", loc="left", fontsize=8)
        known = np.isfinite(lines.recall)
        middle.plot(lines.recall[known], lines.precision[known], color=BLUE)
        if chosen.recall is not None:
            middle.plot([chosen.recall], [chosen.precision], marker="o", color=INK)
        middle.set(xlabel="recall", ylabel="precision", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        right.step(at, lines.cost, where=where, color=BLUE)
        right.set_ylabel("cost a picture")
        goal = chosen.goal
        costs = f"false accept {goal.false_accept:g}, false reject {goal.false_reject:g}"
        right.set_title(costs, loc="left", fontsize=8)
        return save(figure, path)
