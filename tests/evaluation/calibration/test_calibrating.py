"""One calibration: what the server will give, against what people said."""

from __future__ import annotations

import numpy as np
import pytest

from critiq_evaluation.calibration.bundles import calibrated_values
from critiq_evaluation.calibration.calibrating import as_json, calibrate
from critiq_evaluation.calibration.curves import METHODS, Method
from critiq_evaluation.errors import EvaluationError
from critiq_server.bundles.manifest import Calibration, Dimension

PLAIN = Dimension(name="quality", title="Quality", description="", stage="head", output="value")


def bent(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Raw values and ratings of 0 to 100 that rise with them, steeply at first."""
    rng = np.random.default_rng(seed)
    raw = rng.normal(size=count)
    return raw, np.clip(100 * (1 - np.exp(-0.6 * (raw + 3))) + rng.normal(0, 5, count), 0, 100)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("direction", ["higher_is_better", "lower_is_better"])
def test_the_order_of_pictures_stays(method: Method, direction: str) -> None:
    raw, ratings = bent(150)
    sign = 1 if direction == "higher_is_better" else -1
    dimension = PLAIN.model_copy(update={"direction": direction})
    found = calibrate(sign * raw, ratings, dimension, (0, 100), method=method, repeats=1, draws=2)
    new = np.sort(np.random.default_rng(1).normal(size=2000))
    values = calibrated_values(sign * new, found.dimension)
    assert values is not None
    assert (np.diff(values) >= 0).all()
    tied = np.flatnonzero(np.diff(values) == 0)
    # Only by rounding, or beyond the ends of the map.
    exact = (found.fitted(new) - 0) / 100
    outside = (new[tied + 1] <= found.fitted.scores[0]) | (new[tied] >= found.fitted.scores[-1])
    assert (outside | (np.diff(exact)[tied] <= 1.01e-4)).all()


def test_before_is_the_own_calibration_and_after_is_better() -> None:
    raw, ratings = bent(300)
    straight = PLAIN.model_copy(update={"calibration": Calibration(raw=[-3, 3], calibrated=[0, 1])})
    found = calibrate(raw, ratings, straight, (0, 100), repeats=2, draws=2)
    assert found.before is not None
    assert found.before.rmse == pytest.approx(
        np.sqrt(np.mean((100 * np.interp(raw, [-3, 3], [0, 1]) - ratings) ** 2)), abs=0.01
    )
    assert found.after.rmse < 7 < found.before.rmse
    assert found.srcc_after == pytest.approx(found.srcc_before, abs=1e-3)
    assert calibrate(raw, ratings, PLAIN, (0, 100), method="linear", repeats=1, draws=2).before is None


def test_the_unit() -> None:
    raw, ratings = bent(100)
    mos, share = (
        as_json(calibrate(raw, ratings, PLAIN, (0, 100), method="logistic4", to=to, repeats=2, draws=2))
        for to in ("mos", "0..1")
    )
    assert share["after"]["rmse"] == pytest.approx(mos["after"]["rmse"] / 100, rel=1e-3)
    assert share["scale"] == [0, 1]


def test_what_limits_a_calibration_is_said() -> None:
    raw, ratings = bent(40)
    within = PLAIN.model_copy(update={"scope": "within_prompt"})
    found = calibrate(raw, ratings, within, (0, 100), repeats=1, draws=2)
    for words in ("of one prompt only", "only 40 labels", "get the value of the nearest end", "flatters them"):
        assert any(words in note for note in found.notes), words


def test_a_method_that_fails_is_named_and_the_others_go_on() -> None:
    raw = np.linspace(0, 10, 200)
    ratings = np.where(raw < 8, raw, 8 - 0.5 * (raw - 8))
    found = calibrate(raw, ratings, PLAIN, (0, 10), repeats=1, draws=2)
    assert found.failures["logistic5"]
    assert found.methods["logistic5"] is None
    with pytest.raises(EvaluationError, match="fit: failed: logistic5: "):
        calibrate(raw, ratings, PLAIN, (0, 10), method="logistic5")
