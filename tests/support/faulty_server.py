"""``critiq`` with runtimes that can be made to fail: ``python -m tests.support.faulty_server serve ...``.

The file that the environment variable ``FAULTS`` names says how, and is read before every batch: ``raise``, ``nan``,
``infinite``, ``shape``, ``stall`` (until it says otherwise), or nothing. Pictures of the grey levels in ``POISON``
fail whatever the file says, in whatever batch they are.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

POISON = {201: "raise", 202: "nan", 203: "shape", 204: "infinite"}


def mode() -> str:
    """What all batches suffer at present."""
    try:
        return Path(os.environ["FAULTS"]).read_text()
    except FileNotFoundError:
        return ""


def _spoilt(kind: str, outputs: dict[str, Any], rows: Any) -> dict[str, Any]:
    if kind == "raise":
        raise RuntimeError("the device is gone (a secret detail)")
    if kind == "shape":
        return {name: np.concatenate([value, value]) for name, value in outputs.items()}
    for name, value in outputs.items():
        outputs[name] = np.array(value)
        outputs[name][rows] = np.nan if kind == "nan" else -np.inf
    return outputs


def _faulty(run: Any) -> Any:
    def faulty(self: Any, inputs: Any, *, keep_memory: bool = True) -> Any:
        while mode() == "stall":
            time.sleep(0.02)
        outputs = dict(run(self, inputs, keep_memory=keep_memory))
        if kind := mode():
            outputs = _spoilt(kind, outputs, slice(None))
        pictures = inputs.get("image")
        if pictures is not None:
            levels = pictures.reshape(len(pictures), -1)[:, 0]
            for level, poison in POISON.items():
                if (levels == level).any():
                    outputs = _spoilt(poison, outputs, levels == level)
        return outputs

    return faulty


def main() -> None:
    from critiq.cli import main as critiq
    from critiq_server.runtime.onnx import OnnxRuntime
    from critiq_server.runtime.simulated import SimulatedAccelerator

    for runtime in (OnnxRuntime, SimulatedAccelerator):
        runtime.run = _faulty(runtime.run)  # type: ignore[method-assign]
    critiq()


if __name__ == "__main__":
    main()
