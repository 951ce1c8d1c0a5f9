"""The published MA-AGIQA layout: MANIQA's names for the tower, and the fusion's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from critiq_exporters.core.checkpoints import fill
from critiq_exporters.families.ma_agiqa.network import FEATURE, Fusion, PositionVotes
from critiq_exporters.families.maniqa import checkpoint as maniqa

FUSION_NAMES = {
    "fc784_784": "picture",
    "fc4096_784_a2.0": "semantic",
    "fc4096_784_b2.0": "coherence",
    "gating": "gate",
    "output_fc": "output",
}
"""The fusion's parameters: the authors' names, and ours."""
UNUSED = (
    *maniqa.UNUSED,
    # What earlier versions of the authors' network left in its constructor.
    r"(fc39_784|encoder_layer|fc_output|quality|fc784x3_1)\..*",
    r"fc4096_(784|1024)_[ab]\.(weight|bias)",
)
SCALE = 0.8


@dataclass(frozen=True)
class Networks:
    """The two parts that are computed here, in evaluation mode."""

    votes: PositionVotes
    fusion: Fusion


def build(state: Mapping[str, Tensor]) -> Networks:
    """The networks of a checkpoint. Raises ``CheckpointError`` where the checkpoint is not an MA-AGIQA."""
    shape = maniqa.read_shape(state, SCALE)
    known = state.get("fc4096_784_a2.0.weight")
    fusion = Fusion(shape.side**2, known.shape[1] if known is not None and known.dim() == 2 else FEATURE)
    votes = PositionVotes(shape)
    # One module, so that everything that is wrong with the file comes in one list.
    both = nn.ModuleDict({"tower": votes.tower, "fusion": fusion})
    names = {theirs: f"tower.{ours}" for theirs, ours in maniqa.tower_names(shape).items()}
    for theirs, ours in FUSION_NAMES.items():
        names |= {f"{theirs}.{kind}": f"fusion.{ours}.{kind}" for kind in ("weight", "bias")}
    fill(both, state, names, UNUSED)
    return Networks(votes.eval(), fusion.eval())
