"""Entries to put into stores, and whether they came back."""

from __future__ import annotations

import numpy as np

from critiq_server.features.keys import Key
from critiq_server.features.records import Features


def key(number: int) -> Key:
    """Spread over the whole range, as hashes are."""
    return np.random.default_rng(number).bytes(32)


def features(number: int, width: int = 64) -> Features:
    """Half precision values, as an LMM stage gives them."""
    values = np.random.default_rng(number).standard_normal(width).astype(np.float16)
    return {"feature": values.astype(np.float32)}


def entries(*numbers: int, width: int = 64) -> dict[Key, Features]:
    return {key(number): features(number, width) for number in numbers}


def assert_same(found: dict[Key, Features], expected: dict[Key, Features]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name]["feature"], value["feature"])
