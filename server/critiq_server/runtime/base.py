"""What a runtime is: arrays in, arrays out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What one item of an output looks like: numpy's name of its dtype, and its shape, ``None`` where it varies.

    ``ranked``: false where the graph does not say how many axes there are; ``shape`` is empty then.
    """

    dtype: str
    shape: tuple[int | None, ...]
    ranked: bool = True


class Runtime(Protocol):
    """Runs one stage's graph. ``run`` blocks, is thread-safe, and releases the interpreter lock while it computes."""

    @property
    def provider(self) -> str:
        """Where it runs, for instance ``CPUExecutionProvider``."""
        ...

    @property
    def concurrency(self) -> int:
        """How many batches it computes at once without one slowing another down."""
        ...

    @property
    def outputs(self) -> Mapping[str, TensorSpec]:
        """What it gives, by name."""
        ...

    def run(self, inputs: Arrays, *, keep_memory: bool = True) -> Arrays:
        """Computes one batch. Every array, in and out, has the batch as its first axis.

        ``keep_memory=False`` gives the working memory back afterwards, which the next batch would otherwise find ready.
        """
        ...
