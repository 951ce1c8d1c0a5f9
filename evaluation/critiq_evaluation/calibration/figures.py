"""Plots of a calibration as PNG: the map with its pictures, what held-out pictures miss it by, errors by labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from critiq_evaluation.calibration.calibrating import Result

INK, BLUE, ORANGE = "#1b1f24", "#0072b2", "#d55e00"
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "text.parse_math": False}


def draw(result: Result, directory: Path) -> list[Path]:
    """Writes ``calibration.png`` and ``learning_curve.png``."""
    with mpl.rc_context(STYLE):
        return [_map_and_residuals(result, directory), _learning(result, directory)]


def save(figure: Figure, path: Path) -> Path:
    """Writes the PNG without a date in it, so that the same figures make the same file."""
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _map_and_residuals(result: Result, directory: Path) -> Path:
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    size = 14 if result.scores.size <= 500 else 5
    left.scatter(result.scores, result.ratings, s=size, alpha=0.45, color=BLUE, linewidths=0, label="labelled pictures")
    at = np.linspace(result.scores.min(), result.scores.max(), 800)
    left.plot(at, result.fitted(at), color=ORANGE, label=result.method)
    _label(left, f"{result.dimension.name}: raw value (higher is better)", "rating", "The map")
    left.set_ylim(*_padded(result.bounds))
    left.legend(frameon=False)
    known = np.isfinite(result.held_out)
    residuals = result.held_out[known] - result.ratings[known]
    right.scatter(result.held_out[known], residuals, s=size, alpha=0.45, color=BLUE, linewidths=0)
    right.axhline(0, color=INK, linewidth=0.8)
    title = f"Held-out residuals, RMSE {result.after.rmse:.3g}"
    _label(right, "predicted rating of a picture that the map has not seen", "predicted - rating", title)
    return save(figure, directory / "calibration.png")


def _learning(result: Result, directory: Path) -> Path:
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    points = result.learning.points
    labels, rmse, spread = (
        np.array([getattr(point, name) for point in points]) for name in ("labels", "rmse", "spread")
    )
    axes.plot(labels, rmse, marker="o", markersize=4, color=BLUE)
    axes.fill_between(labels, rmse - spread, rmse + spread, color=BLUE, alpha=0.18, linewidth=0)
    if result.learning.enough is not None:
        axes.axvline(result.learning.enough, color=ORANGE, linewidth=1, linestyle="--")
    axes.set_xscale("log")
    axes.set_xticks(labels, [str(count) for count in labels], minor=False)
    axes.set_xticks([], minor=True)
    axes.tick_params(axis="x", rotation=60)
    _label(axes, f"labels ({result.method})", "held-out RMSE", result.learning.note)
    axes.title.set_fontsize(8)
    return save(figure, directory / "learning_curve.png")


def _padded(bounds: tuple[float, float]) -> tuple[float, float]:
    slack = 0.03 * (bounds[1] - bounds[0])
    return bounds[0] - slack, bounds[1] + slack


def _label(axes: Axes, x: str, y: str, title: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.set_title(title, fontsize=9, loc="left")
