"""What a reduced precision of a bundle's graphs would cost and gain, on a CPU."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from critiq_exporters.core.precisions import Precision, convert
from critiq_exporters.training.bundle import BundleScorer
from critiq_exporters.training.degradations import Pixels
from critiq_exporters.training.golden import PROMPTS

PRECISIONS: tuple[Precision, ...] = ("fp16", "int8")


def precision_lines(bundle: Path, scorer: BundleScorer, pictures: Sequence[Pixels]) -> Iterator[str]:
    """Size, processor time and SRCC with the bundle's own scores, one line a precision and dimension.

    ``pictures`` are scored each with one of the golden prompts, one at a time.
    """
    own, seconds = _scores(scorer, pictures)
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary) / "bundle"
            shutil.copytree(bundle, folder)
            for graph in bundle.glob("*.onnx"):
                convert(precision, graph, folder / graph.name)
            size = sum(path.stat().st_size for path in folder.iterdir())
            found, theirs = _scores(BundleScorer(folder), pictures)
        share = theirs / seconds
        yield f"{precision}: {size / 1e6:.1f} MB, {share:.2f} times the processor time ({len(pictures)} pictures)"
        for number, dimension in enumerate(scorer.manifest.dimensions):
            agreement = stats.spearmanr(own[:, number], found[:, number]).statistic
            shift = np.abs(own[:, number] - found[:, number]).max()
            yield f"  {precision} {dimension.name}: SRCC {agreement:.4f}, largest shift {shift:.2g}"


def _scores(scorer: BundleScorer, pictures: Sequence[Pixels]) -> tuple[NDArray[np.float64], float]:
    """Raw values ``[pictures, dimensions]``, and the processor seconds that they took."""
    names = [item.name for item in scorer.manifest.dimensions]
    prompt = PROMPTS[0] if any(item.needs_prompt for item in scorer.manifest.dimensions) else None
    scorer.score(pictures[0], prompt)  # what only the first one costs
    started = time.process_time()
    rows = [
        scorer.score(picture, PROMPTS[number % len(PROMPTS)] if prompt else None)
        for number, picture in enumerate(pictures)
    ]
    seconds = time.process_time() - started
    return np.array([[row[name] for name in names] for row in rows]), seconds
