"""libsvm's text files -> a :class:`Regression`: the model of ``svm-train`` and the ranges of ``svm-scale -s``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from critiq_exporters.core.checkpoints import CheckpointError
from critiq_exporters.families.natural_scene.brisque import FEATURES, Regression

_REGRESSIONS = ("epsilon_svr", "nu_svr")


def read_regression(model: Path, ranges: Path) -> Regression:
    """What ``svm-scale -r ranges`` and ``svm-predict`` with ``model`` compute.

    Raises ``CheckpointError`` where a file is not of its kind, is cut short, or is not about 36 features.
    """
    header, vectors, weights = _model(model)
    target, lowest, highest = _ranges(ranges)
    return Regression(
        lowest=lowest,
        highest=highest,
        target=target,
        vectors=vectors,
        weights=weights,
        gamma=_number(header, "gamma", model),
        offset=_number(header, "rho", model),
    )


def _model(path: Path) -> tuple[dict[str, str], NDArray[np.float64], NDArray[np.float64]]:
    head, separator, body = _text(path).partition("\nSV\n")
    header = dict(line.split(" ", 1) for line in head.splitlines() if " " in line)
    kinds = (header.get("svm_type"), header.get("kernel_type"))
    if not separator or kinds[0] not in _REGRESSIONS or kinds[1] != "rbf":
        raise CheckpointError(
            f"{path} is not a libsvm regression with a Gaussian kernel: svm_type {kinds[0]}, kernel_type {kinds[1]}, "
            f"{'with' if separator else 'without'} support vectors"
        )
    lines = [line.split() for line in body.splitlines() if line.strip()]
    if str(len(lines)) != header.get("total_sv"):
        raise CheckpointError(f"{path} holds {len(lines)} support vectors, its header says {header.get('total_sv')}")
    vectors, weights = np.zeros((len(lines), FEATURES)), np.zeros(len(lines))
    for row, (weight, *entries) in enumerate(lines):
        try:
            weights[row] = float(weight)
            for entry in entries:
                index, value = entry.split(":")
                vectors[row, _feature(index)] = float(value)
        except ValueError as error:
            raise CheckpointError(f"{path}, support vector {row + 1}: {error}") from error
    if not (np.isfinite(vectors).all() and np.isfinite(weights).all()):
        raise CheckpointError(f"{path} holds support vectors that are not finite")
    return header, vectors, weights


def _ranges(path: Path) -> tuple[tuple[float, float], NDArray[np.float64], NDArray[np.float64]]:
    lines = [line.split() for line in _text(path).splitlines() if line.strip()]
    try:
        if lines[0] != ["x"]:
            raise ValueError(f"it begins with {' '.join(lines[0])!r}, not with 'x'")
        low, high = map(float, lines[1])
        bounds = np.full((FEATURES, 2), np.nan)
        for index, lowest, highest in lines[2:]:
            bounds[_feature(index)] = float(lowest), float(highest)
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{path} is not a file of ranges as svm-scale writes it: {error}") from error
    unusable = [str(index + 1) for index, (lowest, highest) in enumerate(bounds) if not lowest < highest]
    if unusable:
        raise CheckpointError(f"{path} gives no range to the features {', '.join(unusable)}")
    return (low, high), bounds[:, 0].copy(), bounds[:, 1].copy()


def _feature(index: str) -> int:
    number = int(index)
    if not 1 <= number <= FEATURES:
        raise ValueError(f"BRISQUE has the features 1 to {FEATURES}, not {number}")
    return number - 1


def _number(header: dict[str, str], name: str, path: Path) -> float:
    try:
        return float(header[name])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path} gives no number for {name}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a readable text file: {error}") from error
