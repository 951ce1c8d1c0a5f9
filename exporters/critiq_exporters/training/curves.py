"""The training curves as pictures."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np

from critiq_exporters.training.damage_training import Curve


def draw_curve(losses: list[float], path: Path) -> None:
    """The loss of the heads over the steps, smoothed, as PNG."""
    _draw(losses, [], path, "visual quality: ranking losses")


def draw_damage_curve(curve: Curve, path: Path) -> None:
    """The loss of the damage network and, at the right, what it tells of pictures that it does not learn from."""
    _draw(curve.losses, curve.watched, path, "damage network")


def _draw(losses: list[float], watched: list[tuple[int, float]], path: Path, title: str) -> None:
    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 3.5))
    window = max(1, len(losses) // 100)
    axes.plot(np.convolve(losses, np.ones(window) / window, "valid"))
    axes.set(xlabel="step", ylabel="loss", title=title)
    if watched:
        right = axes.twinx()
        right.plot(*zip(*watched, strict=True), "o-", color="tab:orange")
        right.set(ylabel="copies told, watched pictures")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
