"""Weights that are a function of their name and shape, and fixtures made with the authors' code from such weights."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from critiq_exporters.families.maniqa.checkpoint import tower_names
from critiq_exporters.families.maniqa.network import Shape, Tower

PARITY = Path(__file__).parents[3].parent / "shared" / "parity"
TINY = Shape(image=64, vit_width=64, vit_hidden=128, widths=(32, 16), hidden=32)
"""The published network's structure at 8 x 8 positions."""

needs_fixtures = pytest.mark.skipif(not PARITY.is_dir(), reason="the fixtures made with the authors' code are not here")


def rule_made(name: str, shape: tuple[int, ...]) -> Tensor:
    """float32: 0.7 n / sqrt(fan in) for weights, 1 + 0.02 n for those of norms, 0.02 n for all else.

    n is standard normal, from a Philox generator whose key is the CRC-32 of ``name``.
    """
    generator = np.random.Generator(np.random.Philox(key=zlib.crc32(name.encode())))
    values = generator.standard_normal(shape, dtype=np.float32)
    if not name.endswith("weight"):
        values *= np.float32(0.02)
    elif len(shape) == 1:
        values = np.float32(1) + np.float32(0.02) * values
    else:
        values *= np.float32(0.7 / np.sqrt(np.prod(shape[1:])))
    return torch.from_numpy(values)


def tiny_state() -> dict[str, Tensor]:
    """A checkpoint of the network ``TINY`` in the published layout, with what inference does not use."""
    ours = Tower(TINY).state_dict(keep_vars=True)
    state = {
        theirs: rule_made(theirs, tuple(ours[name].shape))
        if isinstance(ours[name], torch.nn.Parameter)
        else ours[name].clone()
        for theirs, name in tower_names(TINY).items()
    }
    unused = {"vit.blocks.10.norm1.weight": (64,), "vit.head.bias": (1000,), "swintransformer1.downsample.bias": (32,)}
    return state | {name: rule_made(name, shape) for name, shape in unused.items()}


def published_state(folder: str) -> dict[str, Tensor]:
    """The full-size checkpoint of a fixture."""
    layout = json.loads((PARITY / folder / "layout.json").read_text())
    with np.load(PARITY / folder / "buffers.npz") as buffers:
        as_built = {name: torch.from_numpy(buffers[name]) for name in buffers.files}
    return {
        name: as_built[name] if name in as_built else rule_made(name, tuple(shape))
        for name, shape, _ in layout["state_dict"]
    }


def fixture_arrays(folder: str, kind: str) -> Mapping[str, NDArray[Any]]:
    """``inputs`` or ``expected`` of a fixture."""
    with np.load(PARITY / folder / f"{kind}.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def cut(text: str) -> tuple[slice, ...]:
    """``"[:, ::196, :8]"`` as slices."""
    parts = text.strip("[]").split(",")
    return tuple(slice(*(int(number) if number.strip() else None for number in part.split(":"))) for part in parts)
