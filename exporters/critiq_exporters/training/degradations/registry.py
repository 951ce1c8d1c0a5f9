"""Ways to spoil a picture, by name: pixels, a level and a random generator in, pixels of the same shape out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
"""RGB, ``[height, width, 3]``."""
Degrade = Callable[[Pixels, int, np.random.Generator], Pixels]
Kind = Literal["technical", "aesthetic", "generative"]

LEVELS = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Family:
    """One way to spoil a picture, from level 1 (just visible) to 5 (ruined)."""

    name: str
    kind: Kind
    function: Degrade


FAMILIES: dict[str, Family] = {}


def family(kind: Kind) -> Callable[[Degrade], Degrade]:
    """Registers the decorated function under its own name."""

    def register(function: Degrade) -> Degrade:
        name = function.__name__
        if name in FAMILIES:
            raise ValueError(f"two families are called {name!r}")
        FAMILIES[name] = Family(name, kind, function)
        return function

    return register


def degrade(pixels: Pixels, name: str, level: int, rng: np.random.Generator) -> Pixels:
    """``pixels`` spoiled by the family ``name`` at ``level`` (1..5); the same generator state gives the same result.

    Raises ``KeyError`` for an unknown family and ``ValueError`` for a level outside 1..5.
    """
    if level not in LEVELS:
        raise ValueError(f"level must be 1..5, not {level}")
    result = FAMILIES[name].function(pixels, level, rng)
    if result.shape != pixels.shape or result.dtype != np.uint8:
        raise ValueError(f"{name} returned {result.dtype}{result.shape} for uint8{pixels.shape}")
    return result


def names(kind: Kind) -> list[str]:
    """The families of one kind, in the order of their definition."""
    return [item.name for item in FAMILIES.values() if item.kind == kind]
