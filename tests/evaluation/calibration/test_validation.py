"""Held-out errors, the choice of a method, and how many labels are enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks import calibration as benchmark
from critiq_evaluation.calibration.curves import METHODS, Method
from critiq_evaluation.calibration.validation import (
    Errors,
    check_labels,
    choose,
    cross_validated,
    held_out_predictions,
    learning_curve,
)
from critiq_evaluation.errors import EvaluationError

MOS = Path(__file__).parents[4] / "shared" / "data" / "mos" / "aigiqa20k_info_train.csv"


def noisy_line(count: int, noise: float = 0.5, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, count)
    return x, np.clip(1 + 4 * x + rng.normal(0, noise, count), 1, 5)


def test_held_out_errors_are_those_of_pictures_not_fitted() -> None:
    x, y = noisy_line(60)
    y[7] = 1.0  # an outlier whose own label must not pull its prediction
    said = held_out_predictions(x, y, "isotonic", (1, 5))
    y_other = y.copy()
    y_other[7] = 5.0
    assert held_out_predictions(x, y_other, "isotonic", (1, 5))[7] == said[7]


def test_noise_is_what_is_left() -> None:
    x, y = noisy_line(2000, noise=0.3)
    found = cross_validated(x, y, "linear", (1, 5), repeats=3)
    assert found is not None
    assert found.rmse == pytest.approx(0.29, abs=0.02)  # the clipping at 1 and 5 takes a little
    assert found.plcc is not None
    assert found.plcc > 0.95
    assert not found.failed


def test_the_simplest_of_equals_is_chosen() -> None:
    x, y = noisy_line(100)
    found = {name: cross_validated(x, y, name, (1, 5), repeats=3) for name in METHODS}
    assert choose(found) == "linear"
    better: dict[Method, Errors | None] = {
        "linear": Errors(0.5, 0.01, 0.4, 0.01, 0.9),
        "logistic4": None,
        "logistic5": Errors(0.3, 0.05, 0.2, 0.01, 0.9, failed=4),
        "isotonic": Errors(0.4, 0.02, 0.3, 0.01, 0.9),
    }
    assert choose(better) == "isotonic"
    with pytest.raises(EvaluationError, match="fit: failed"):
        choose(dict.fromkeys(METHODS))


def test_enough_labels() -> None:
    x, y = noisy_line(500)
    found = learning_curve(x, y, "linear", (1, 5))
    assert found.points[-1].labels == 400
    assert found.enough is not None
    assert found.enough <= 100  # a line needs few
    assert all(point.rmse <= 1.05 * found.points[-1].rmse for point in found.points if point.labels >= found.enough)
    assert f"{found.enough} labels give an error within 5 %" in found.note


def test_too_few_labels_to_tell() -> None:
    x, y = noisy_line(13)
    found = learning_curve(x, y, "linear", (1, 5))
    assert found.enough is None
    assert "11 labels are not shown to be enough" in found.note


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.arange(9.0), np.arange(9.0), "9 labelled pictures"),
        (np.arange(30.0), -np.arange(30.0), r"SRCC of scores and ratings is -1\.0000"),
        (np.ones(30), np.arange(30.0), "all 30 scores are 1"),
        (np.arange(30.0), np.full(30, np.inf), "not finite"),
    ],
)
def test_labels_that_cannot_be_used(x: np.ndarray, y: np.ndarray, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        check_labels(x, y)


@pytest.fixture(scope="module")
def aigiqa() -> np.ndarray:
    if not MOS.exists():
        pytest.skip("no ../shared/data/mos beside the checkout")
    return benchmark.read_ratings(MOS)


def test_on_ratings_of_aigiqa_20k_calibration_does_what_the_table_says(aigiqa: np.ndarray) -> None:
    raw = benchmark.simulate(aigiqa, 0.9, "like cosines")
    before, best = benchmark.uncalibrated(raw, aigiqa), benchmark.best(raw, aigiqa)
    found = {
        (method, size): float(np.mean(benchmark.errors(raw, aigiqa, method, size, 5)[0]))
        for method in METHODS
        for size in (50, 500)
    }
    assert before > 3 * best
    for method in METHODS:
        assert found[method, 50] < 0.4 * before
        assert found[method, 500] < found[method, 50]
    assert found["isotonic", 500] < 1.1 * best
    assert found["linear", 500] > 1.2 * best  # the relation is not a line
