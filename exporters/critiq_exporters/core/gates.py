"""What an export must pass: agreement with torch at every batch size, and reduced precisions with fp32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.stats import spearmanr

from critiq_exporters.core.evaluate import Run, Trace, run_in_batches
from critiq_exporters.core.rows import alike, take
from critiq_server.bundles.manifest import Dimension, Stage

OUTPUT_TOLERANCE = 1e-4
"""Of a stage's output in float32, as a share of its largest value (or of 1, if that is larger)."""
HALF_TOLERANCE = 4e-3
"""The same in float16: four roundings."""
HALF_RANGE = 65504 / 4
"""A quarter of float16's largest number, because few pictures are looked at."""
_SHAPES = 4


class Gate(BaseModel):
    """One check and how it came out."""

    model_config = ConfigDict(frozen=True, ser_json_inf_nan="strings")

    name: str
    passed: bool
    figure: float
    limit: float
    unit: str

    def line(self) -> str:
        """For a person."""
        verdict = "passed" if self.passed else "FAILED"
        return f"{verdict}: {self.name}: {self.figure:.3g} {self.unit} (limit {self.limit:g})"


@dataclass(frozen=True)
class VariantLimits:
    """How far a reduced precision may move scores on the picture set."""

    shift: float = 0.05
    """Largest move of one score, as a share of the spread (largest less smallest) of the fp32 scores."""
    srcc: float = 0.995
    """Smallest Spearman correlation with the fp32 scores."""


def batch_sizes(largest: int) -> list[int]:
    """1, 2, an odd size and the largest, as far as ``largest`` allows."""
    return sorted({1, min(2, largest), (largest // 2) | 1 if largest > 2 else 1, largest})


def stage_gates(stage: Stage, run: Run, trace: Trace, against: str, tolerance: float = OUTPUT_TOLERANCE) -> list[Gate]:
    """Runs ``stage`` on the inputs of ``trace`` at every batch size and compares with the outputs of ``trace``.

    A size larger than the picture set is filled up by repeating pictures; where pictures differ in shape, each of the
    first few shapes fills batches of its own. NaN never passes.
    """
    gates = []
    held = trace.inputs[stage.name]
    for size in batch_sizes(stage.max_batch):
        worst = 0.0
        for group in alike(held)[:_SHAPES]:
            rows = np.resize(group, size)
            found = run_in_batches(stage, run, {name: take(value, rows) for name, value in held.items()}, size)
            for name, expected in trace.outputs[stage.name].items():
                worst = max(worst, _relative_error(take(expected, rows), found[name]))
        gates.append(
            Gate(
                name=f"stage {stage.name}, batch {size}, against {against}",
                passed=worst <= tolerance,
                figure=worst,
                limit=tolerance,
                unit="largest error / largest output",
            )
        )
    return gates


def score_gate(dimension: Dimension, expected: Trace, found: Trace, against: str) -> Gate:
    """Raw scores within the dimension's tolerance on every picture that both traces have."""
    wanted, got = expected.raw(dimension), found.raw(dimension)
    count = min(len(wanted), len(got))
    worst = _largest(np.abs(wanted[:count] - got[:count]))
    return Gate(
        name=f"dimension {dimension.name}, {count} pictures, against {against}",
        passed=worst <= dimension.tolerance,
        figure=worst,
        limit=dimension.tolerance,
        unit="raw score",
    )


def variant_gates(dimension: Dimension, reference: Trace, variant: Trace, limits: VariantLimits) -> list[Gate]:
    """A reduced precision against fp32: largest move of a score, and order of the pictures."""
    wanted, got = reference.raw(dimension), variant.raw(dimension)
    shift = largest_move(dimension, reference, variant) / max(float(np.ptp(wanted)), 1e-12)
    srcc = rank_correlation(wanted, got)
    about = f"dimension {dimension.name}, {len(wanted)} pictures, against fp32"
    return [
        Gate(
            name=f"{about}: largest move",
            passed=shift <= limits.shift,
            figure=shift,
            limit=limits.shift,
            unit="of the spread",
        ),
        Gate(name=f"{about}: order", passed=srcc >= limits.srcc, figure=srcc, limit=limits.srcc, unit="SRCC"),
    ]


def range_gate(stage: Stage, largest: float) -> Gate:
    """Whether float16 can hold what the layers of ``stage`` give.

    Scores alone do not tell: on a CPU onnxruntime keeps what lies between two layers in float32, a GPU does not.
    """
    return Gate(
        name=f"stage {stage.name}, largest activation in fp32",
        passed=largest <= HALF_RANGE,
        figure=largest,
        limit=HALF_RANGE,
        unit="",
    )


def largest_move(dimension: Dimension, reference: Trace, variant: Trace) -> float:
    """Of a raw score on any picture; infinite where one is not a number."""
    return _largest(np.abs(reference.raw(dimension) - variant.raw(dimension)))


def rank_correlation(a: Sequence[float] | NDArray[np.float64], b: Sequence[float] | NDArray[np.float64]) -> float:
    """Spearman's; -1 where it is not defined (a constant, NaN), so that no gate passes on it."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return -1.0
    value = float(spearmanr(a, b).statistic)
    return value if np.isfinite(value) else -1.0


def _relative_error(expected: NDArray[np.generic], found: NDArray[np.generic]) -> float:
    if expected.shape != found.shape:
        return float("inf")
    wanted, got = expected.astype(np.float64), found.astype(np.float64)
    return _largest(np.abs(wanted - got)) / max(1.0, _largest(np.abs(wanted)))


def _largest(values: NDArray[np.float64]) -> float:
    largest = float(values.max())
    return largest if np.isfinite(largest) else float("inf")
