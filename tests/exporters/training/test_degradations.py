"""Every family: deterministic, same shape, worse with every level."""

from __future__ import annotations

import numpy as np
import pytest

from critiq_exporters.training.degradations import FAMILIES, LEVELS, Pixels, degrade, names
from critiq_exporters.training.golden import drawings

PICTURE: Pixels = drawings()[1][:240, :301]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_same_generator_state_gives_the_same_picture(name: str) -> None:
    first, second = (degrade(PICTURE, name, 3, np.random.default_rng(4)) for _ in range(2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("name", FAMILIES)
def test_shape_and_type_stay_and_the_input_is_not_touched(name: str) -> None:
    before = PICTURE.copy()
    for level in LEVELS:
        spoilt = degrade(PICTURE, name, level, np.random.default_rng(0))
        assert spoilt.shape == PICTURE.shape
        assert spoilt.dtype == np.uint8
        assert not np.array_equal(spoilt, PICTURE)
    assert np.array_equal(PICTURE, before)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_strongest_level_changes_more_than_the_weakest(name: str) -> None:
    def change(level: int) -> float:
        rngs = (np.random.default_rng(seed) for seed in range(4))
        return float(np.mean([np.abs(degrade(PICTURE, name, level, rng).astype(int) - PICTURE).mean() for rng in rngs]))

    assert change(5) > 1.2 * change(1)


def test_the_kinds_hold_what_the_recipe_promises() -> None:
    assert len(names("technical")) >= 25
    assert len(names("aesthetic")) >= 7
    assert len(names("generative")) >= 8


def test_bad_arguments_are_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match=r"1\.\.5"):
        degrade(PICTURE, "jpeg", 6, rng)
    with pytest.raises(KeyError):
        degrade(PICTURE, "no_such_family", 1, rng)
