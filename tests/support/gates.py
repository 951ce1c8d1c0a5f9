"""Holding a served model's device, so that a test decides when a batch ends."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from critiq_server.app import App


class Gate:
    """In front of one stage's runtime: each batch waits for a permit. Counts the pictures that came through."""

    def __init__(self, app: App, stage: str, model: str = "") -> None:
        with app.service.registry.lease(model) as served:
            self.batcher = served.batchers[stage]
            runtime: Any = served.model.stages[stage].runtime
        self.computed = 0
        self._run = runtime.run
        self._permits = threading.Semaphore(0)
        self._open = False
        runtime.run = self._wait_and_run

    def let_go(self, batches: int = 1) -> None:
        self._permits.release(batches)

    def release(self) -> None:
        """Holds nothing from now on."""
        self._open = True
        self._permits.release(10_000)

    def _wait_and_run(self, inputs: Any) -> Any:
        self.computed += len(next(iter(inputs.values())))
        if not self._open and not self._permits.acquire(timeout=60):
            raise AssertionError("nobody let the batch go")
        return self._run(inputs)


@contextmanager
def held(app: App, stage: str, model: str = "") -> Iterator[Gate]:
    """Holds the device of ``stage`` until it is released, at the latest at the end of the block."""
    gate = Gate(app, stage, model)
    try:
        yield gate
    finally:
        gate.release()
