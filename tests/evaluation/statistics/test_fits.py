"""The curves against the formulas as published, and the experiment on pairs of scales that decided the default."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.optimize import curve_fit

from critiq_evaluation.statistics import FITS, FitName, fit_curve, measure

Range = tuple[float, float]
PAIRS: list[tuple[Range, Range]] = [
    ((0, 1), (0, 1)),
    ((0, 1), (0, 100)),
    ((0.2, 0.35), (0, 100)),
    ((0, 100), (0, 5)),
    ((1, 5), (1, 5)),
    ((-2, 2), (0, 100)),
]


def sigmoid_with_noise(scores: Range, ratings: Range) -> tuple[np.ndarray, np.ndarray]:
    """3,000 points of a sigmoid with noise on the two scales, so that PLCC is .8207 raw and .8513 fitted."""
    generator = np.random.default_rng(0)
    place = generator.uniform(0, 1, 3000)
    opinion = 1 / (1 + np.exp(-11.487 * (place - 0.5))) + generator.normal(0, 0.2465, 3000)
    return scores[0] + place * (scores[1] - scores[0]), ratings[0] + opinion * (ratings[1] - ratings[0])


@pytest.mark.parametrize(("scores", "ratings"), PAIRS)
def test_the_four_parameter_forms_agree_on_every_pair_of_scales(scores: Range, ratings: Range) -> None:
    x, y = sigmoid_with_noise(scores, ratings)
    vqeg, sjtu, five = (measure(x, y, name) for name in ("logistic4", "logistic4-sjtu", "logistic5"))
    assert vqeg.plcc == pytest.approx(0.8207, abs=5e-5)
    assert vqeg.plcc_fitted == pytest.approx(0.8513, abs=5e-5)
    assert sjtu.plcc_fitted == pytest.approx(vqeg.plcc_fitted, abs=1e-4)
    assert five.plcc_fitted == pytest.approx(vqeg.plcc_fitted, abs=1e-3)
    assert five.plcc_fitted >= vqeg.plcc_fitted - 1e-7


def test_pyiqas_five_parameters_become_a_line_which_is_detected() -> None:
    x, y = sigmoid_with_noise((0.2, 0.35), (0, 100))

    def curve(x, b1, b2, b3, b4, b5):  # type: ignore[no-untyped-def]
        return b1 * (0.5 - 1 / (1 + np.exp(b2 * (x - b3)))) + b4 * x + b5

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, _ = curve_fit(curve, x, y, p0=[10, 0, y.mean(), 0.1, 0.1])
    assert np.corrcoef(curve(x, *found), y)[0, 1] == pytest.approx(0.8207, abs=5e-5)  # no exception, no warning to see

    ours = measure(x, y, "logistic5-pyiqa")
    assert ours.fit.state == "failed"
    assert "straight line" in ours.fit.reason
    assert (ours.plcc_fitted, ours.rmse) == (None, None)
    assert ours.plcc == pytest.approx(0.8207, abs=5e-5)
    # Where the scales are near, it is what the others are.
    near = measure(*sigmoid_with_noise((1, 5), (1, 5)), "logistic5-pyiqa")
    assert near.plcc_fitted == pytest.approx(0.8513, abs=1e-3)


def test_the_default_is_the_formula_as_published() -> None:
    x, y = sigmoid_with_noise((1, 5), (1, 5))

    def curve(x, b1, b2, b3, b4):  # type: ignore[no-untyped-def]
        return (b1 - b2) / (1 + np.exp(-(x - b3) / b4)) + b2

    found, _ = curve_fit(curve, x, y, p0=[y.max(), y.min(), x.mean(), x.std() / 4])
    ours = fit_curve(x, y)
    assert ours(x) == pytest.approx(curve(x, *found), abs=1e-5)
    b1, b2, b3, b4 = ours.parameters
    at = (x - ours.shift) / ours.scale
    assert ours(x) == pytest.approx((b1 - b2) / (1 + np.exp(-(at - b3) / b4)) + b2, abs=1e-9)


def test_the_other_forms_are_the_formulas_as_published() -> None:
    x, y = sigmoid_with_noise((1, 5), (1, 5))
    sjtu = fit_curve(x, y, "logistic4-sjtu")
    b1, b2, b3, b4 = sjtu.parameters
    assert sjtu(x) == pytest.approx(b2 + (b1 - b2) / (1 + np.exp(-(x - b3) / abs(b4))), abs=1e-9)
    for name in ("logistic5", "logistic5-pyiqa"):
        five = fit_curve(x, y, name)
        b1, b2, b3, b4, b5 = five.parameters
        at = (x - five.shift) / five.scale
        assert five(x) == pytest.approx(b1 * (0.5 - 1 / (1 + np.exp(b2 * (at - b3)))) + b4 * at + b5, abs=1e-9)


def test_a_curve_that_was_put_in_comes_out() -> None:
    x = np.linspace(-3, 9, 200)
    y = (4.6 - 1.2) / (1 + np.exp(-(x - 2.5) / 0.8)) + 1.2
    found = measure(x, y)
    assert found.plcc_fitted == pytest.approx(1, abs=1e-9)
    assert found.rmse == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", [name for name in FITS if name != "none"])
def test_too_few_pictures_for_the_parameters(name: FitName) -> None:
    found = measure([1.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.5, 3.0], name)
    assert found.fit.state == "failed"
    assert "4 pictures" in found.fit.reason
    assert found.srcc == pytest.approx(1)
    with pytest.raises(ValueError, match="failed"):
        found.fit([1.0])


def test_no_fit_ever_gives_a_number_that_is_none() -> None:
    """Noise without a relation, steps, outliers, huge and tiny scales: a fit is finite, or failed with a reason."""
    generator = np.random.default_rng(5)
    noise = generator.normal(size=40)
    cases = [
        (noise, generator.normal(size=40)),
        (np.repeat([0.0, 1.0], 20), generator.normal(size=40)),
        (np.append(noise[1:], 1e9), generator.normal(size=40)),
        (noise * 1e-9, noise * 1e9),
        (noise, np.append(np.zeros(39), 1.0)),
    ]
    for x, y in cases:
        for name in FITS:
            found = measure(x, y, name)
            if found.fit.state == "ok":
                assert found.plcc_fitted is not None
                assert np.isfinite(found.plcc_fitted)
            else:
                assert found.fit.reason
                assert found.plcc_fitted is None


def test_a_curve_that_rises_and_falls_is_noted() -> None:
    x = np.linspace(-3, 3, 200)
    found = fit_curve(x, np.tanh(4 * x) - 0.4 * x, "logistic5")
    assert found.state == "ok"
    assert "rises and falls" in found.note


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="known are logistic4, "):
        fit_curve([1, 2, 3], [1, 2, 3], "cubic")  # type: ignore[arg-type]
