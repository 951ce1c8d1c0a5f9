"""The arithmetic of the gates."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from critiq_exporters.core.drift import LayerDrift
from critiq_exporters.core.evaluate import Arrays, Trace
from critiq_exporters.core.gates import (
    VariantLimits,
    batch_sizes,
    rank_correlation,
    score_gate,
    stage_gates,
    variant_gates,
)
from critiq_exporters.core.report import PrecisionReport, Report, read_report
from critiq_server.bundles.manifest import Dimension, ImageInput, ResizeView, Stage

STAGE = Stage(
    name="s", graph="s.onnx", inputs={"x": ImageInput(view=ResizeView(height=1, width=1))}, outputs=["y"], max_batch=7
)
DIMENSION = Dimension(name="d", title="D", description="-", stage="s", output="y", tolerance=0.01)


def trace(*values: float) -> Trace:
    column = np.array(values, np.float32)
    return Trace({"s": {"x": column}}, {"s": {"y": column}}, {"s": 1.0})


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 5, 8]), (16, [1, 2, 9, 16])]
)
def test_batch_sizes_are_one_two_odd_and_the_largest(largest: int, sizes: list[int]) -> None:
    assert batch_sizes(largest) == sizes


def test_every_batch_size_is_run_even_with_few_pictures() -> None:
    seen = []

    def run(stage: Stage, arrays: Arrays) -> Arrays:
        seen.append(len(arrays["x"]))
        return {"y": arrays["x"]}

    assert all(gate.passed for gate in stage_gates(STAGE, run, trace(1, 2), "torch"))
    assert seen == [1, 2, 3, 7]


def test_an_error_in_large_batches_only_is_found() -> None:
    def run(stage: Stage, arrays: Arrays) -> Arrays:
        return {"y": arrays["x"] + (0.01 if len(arrays["x"]) > 2 else 0)}

    assert [gate.passed for gate in stage_gates(STAGE, run, trace(1, 2), "torch")] == [True, True, False, False]


@pytest.mark.parametrize("answer", [np.array([[1.0], [2.0]]), np.array([1.0, np.nan])])
def test_wrong_shapes_and_nan_never_pass(answer: np.ndarray) -> None:
    gates = stage_gates(
        STAGE.model_copy(update={"max_batch": 2}), lambda stage, arrays: {"y": answer}, trace(1, 2), "torch"
    )
    assert not any(gate.passed for gate in gates[-1:])


def test_scores_pass_within_their_dimensions_tolerance() -> None:
    assert score_gate(DIMENSION, trace(1, 2), trace(1.005, 2), "torch").passed
    assert not score_gate(DIMENSION, trace(1, 2), trace(1.02, 2), "torch").passed


def test_a_variant_may_move_scores_by_a_share_of_their_spread() -> None:
    reference, limits = trace(0, 10, 20), VariantLimits(shift=0.05, srcc=0.9)
    assert all(gate.passed for gate in variant_gates(DIMENSION, reference, trace(0.9, 10, 20), limits))
    assert [gate.passed for gate in variant_gates(DIMENSION, reference, trace(1.1, 10, 20), limits)] == [False, True]
    assert [gate.passed for gate in variant_gates(DIMENSION, trace(0, 10, 10.1), trace(0, 10.1, 10), limits)] == [
        True,
        False,
    ]


def test_order_is_not_defined_without_differences() -> None:
    assert rank_correlation([1.0, 1.0], [1.0, 2.0]) == -1
    assert rank_correlation([1.0, 2.0], [1.0, float("nan")]) == -1
    assert rank_correlation([1.0, 2.0, 3.0], [3.0, 2.0, 1.0]) == pytest.approx(-1)


def test_a_report_keeps_errors_that_are_no_finite_numbers(tmp_path: Path) -> None:
    gate = score_gate(DIMENSION, trace(1, 2), trace(1, float("nan")), "torch")
    assert not gate.passed
    layer = LayerDrift(layer="a", operator="Mul", error=float("inf"), step=1.0, largest=1.0)
    entry = PrecisionReport(
        precision="fp16", name="d-fp16", gates=[gate], graph_bytes={"s": 1}, seconds={"s": 1.0}, drift={"s": [layer]}
    )
    report = Report(
        family="f",
        version="1",
        options={"scale": 0.8},
        checkpoint_sha256="0",
        command="tests",
        created="2026-01-01",
        pictures="2 pictures",
        threads=1,
        torch_seconds={"s": 2.0},
        precisions=[entry],
    )
    report.write(tmp_path)
    assert read_report(tmp_path) == report
    assert "**not written**" in report.markdown()
