"""Loss curves as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_curves(steps: Sequence[dict[str, float]], path: Path) -> None:
    """One panel for each loss term over the steps, smoothed by a running mean, as a PNG."""
    if not steps:
        return
    names = list(steps[0])
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(14, 6), squeeze=False)
    window = max(1, len(steps) // 50)
    for axis, name in zip(axes.flat, names, strict=False):
        values = np.array([step[name] for step in steps])
        axis.plot(values, alpha=0.25)
        axis.plot(np.arange(window - 1, len(values)), np.convolve(values, np.ones(window) / window, "valid"))
        axis.set_title(name)
        axis.set_xlabel("step")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)
