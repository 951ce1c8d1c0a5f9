"""Where torch computes, in which number format, and what happens when its memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from critiq_server.bundles.lmm import FloatFormat
from critiq_server.runtime.lmm.folder import LmmUnavailable

DTYPES: dict[FloatFormat, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto``: the first GPU, else the CPU. Raises ``LmmUnavailable``."""
    if name == "auto":
        name = "cuda:0" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise LmmUnavailable(f"lmm.device is {name!r}, which torch cannot use here: {error}") from error
    return device


def describe_device(device: torch.device) -> str:
    """For people, for instance ``torch:cuda:0``."""
    return f"torch:{device}"


def in_halves(compute: Callable[[Sequence[int]], NDArray[np.float32]], rows: Sequence[int]) -> NDArray[np.float32]:
    """``compute(rows)``; in halves, and halves of those, where the GPU's memory does not suffice for all at once."""
    try:
        return compute(rows)
    except torch.cuda.OutOfMemoryError:
        if len(rows) == 1:
            raise
    torch.cuda.empty_cache()
    middle = len(rows) // 2
    return np.concatenate([in_halves(compute, rows[:middle]), in_halves(compute, rows[middle:])])
