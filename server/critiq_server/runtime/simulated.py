"""An accelerator that computes nothing and takes its time, for tests and benchmarks of the engine alone.

On a CPU batching gains little, so the batcher has to be judged where it matters: on a device whose batch costs a fixed
time plus a little for each item, one batch at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import numpy as np

from critiq_server.bundles.manifest import Simulated
from critiq_server.runtime.base import Arrays, TensorSpec


class SimulatedAccelerator:
    """Takes ``batch_ms + items * item_ms`` a batch; outputs are the items' first input values, float32 ``[batch]``."""

    provider = "SimulatedAccelerator"
    concurrency = 1

    def __init__(self, cost: Simulated, outputs: Sequence[str]) -> None:
        self._cost = cost
        self.outputs = {name: TensorSpec("float32", ()) for name in outputs}
        self._device = threading.Lock()

    def run(self, inputs: Arrays, *, keep_memory: bool = True) -> Arrays:
        first = next(iter(inputs.values()))
        items = len(first)
        with self._device:
            time.sleep((self._cost.batch_ms + items * self._cost.item_ms) / 1000)
        values = first.reshape(items, -1)[:, 0].astype(np.float32)
        return dict.fromkeys(self.outputs, values)
