"""Checkpoints of ELIQ's scoring module: a state dict under our own names, since the authors have published none."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from critiq_exporters.core.checkpoints import CheckpointError, fill
from critiq_exporters.families.eliq.network import Scorer, Shape

HEADS = 8
"""Of attention: the one size that no parameter's shape tells."""


def build(state: Mapping[str, Tensor], heads: int = HEADS) -> Scorer:
    """The scoring module of a checkpoint, in evaluation mode.

    Raises ``CheckpointError`` where the checkpoint is none of it, or its width cannot be cut into ``heads``.
    """
    shape = read_shape(state, heads)
    with torch.device("meta"):
        scorer = Scorer(shape)
    scorer = scorer.to_empty(device="cpu")
    fill(scorer, state, {name: name for name in scorer.state_dict()})
    return scorer.eval()


def read_shape(state: Mapping[str, Tensor], heads: int) -> Shape:
    """Sizes, from the shapes of the parameters that tell them; what is missing stays as it usually is."""
    usual = Shape()
    layers = {int(found[1]) for name in state if (found := re.match(r"layers\.(\d+)\.", name))}
    shape = Shape(
        feature=_rows(state, "fusion.technical_gate.weight", usual.feature),
        hidden=_rows(state, "fusion.mix.0.weight", usual.hidden),
        width=_rows(state, "project.weight", usual.width),
        layers=max(layers) + 1 if layers else usual.layers,
        heads=heads,
    )
    if heads < 1 or shape.width % heads:
        raise CheckpointError(f"a width of {shape.width} cannot be cut into {heads} attention heads; pass --heads")
    return shape


def _rows(state: Mapping[str, Tensor], name: str, usual: int) -> int:
    return state[name].shape[0] if name in state and state[name].dim() == 2 else usual
