"""The published MANIQA layout: original parameter names, and the sizes that their shapes tell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from critiq_exporters.core.checkpoints import fill
from critiq_exporters.families.maniqa.network import TAPS, Maniqa, Shape

UNUSED = (
    rf"vit\.blocks\.(?!(?:{'|'.join(map(str, range(TAPS[-1] + 1)))})\.)\d+\..*",
    r"vit\.(norm|head)\..*",
    r"swintransformer[12]\.downsample\..*",
)
"""Entries of the file that inference does not touch."""


def build(state: Mapping[str, Tensor], scale: float) -> Maniqa:
    """The network of a checkpoint, filled, in evaluation mode.

    ``scale`` is :attr:`Shape.scale`. Raises ``CheckpointError`` where the checkpoint is not a MANIQA.
    """
    shape = read_shape(state, scale)
    model = Maniqa(shape)
    fill(model.tower, state, tower_names(shape), UNUSED)
    return model.eval()


def read_shape(state: Mapping[str, Tensor], scale: float) -> Shape:
    """Sizes as the parameters' shapes tell them, published ones where they tell nothing sensible.

    It need not be right about a broken checkpoint: filling then lists what does not fit these sizes.
    """
    published = Shape(scale=scale)
    try:
        return _told_shape(state, published)
    except (KeyError, ValueError, IndexError):
        return published


def _told_shape(state: Mapping[str, Tensor], published: Shape) -> Shape:
    def size(name: str, axis: int) -> int:
        return state[name].shape[axis]

    swin = "swintransformer1.layers"
    layers = range(_count(state, swin + ".{}.conv.weight"))
    table = "attn.relative_position_bias_table"
    patch = size("vit.patch_embed.proj.weight", 2)
    return replace(
        published,
        image=patch * math.isqrt(size("vit.pos_embed", 1) - 1),
        patch=patch,
        vit_width=size("vit.cls_token", 2),
        vit_hidden=size("vit.blocks.0.mlp.fc1.weight", 0),
        widths=(size("conv1.weight", 0), size("conv2.weight", 0)),
        hidden=size(f"{swin}.0.blocks.0.mlp.fc1.weight", 0),
        attentions=_count(state, "tablock1.{}.c_q.weight"),
        window=(math.isqrt(size(f"{swin}.0.blocks.0.{table}", 0)) + 1) // 2,
        heads=tuple(size(f"{swin}.{layer}.blocks.0.{table}", 1) for layer in layers),
        depths=tuple(_count(state, f"{swin}.{layer}.blocks.{{}}.norm1.weight") for layer in layers),
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    count = 0
    while pattern.format(count) in state:
        count += 1
    if not count:
        raise KeyError(pattern)
    return count


def tower_names(shape: Shape) -> dict[str, str]:
    """Our names of the :class:`Tower`'s parameters and constants, by their original names."""
    names = {"vit.cls_token": "vit.class_token", "vit.pos_embed": "vit.positions"}
    names |= _linear({"vit.patch_embed.proj": "vit.patches"})
    for block in range(TAPS[-1] + 1):
        names |= _linear(_block_names(f"vit.blocks.{block}", f"vit.blocks.{block}"))
    for stage in (1, 2):
        names |= _stage_names(shape, stage)
    return names | _linear(
        {
            "fc_score.0": "score.0",
            "fc_score.3": "score.2",
            "fc_weight.0": "weight.0",
            "fc_weight.3": "weight.2",
        }
    )


def _stage_names(shape: Shape, stage: int) -> dict[str, str]:
    linear = {f"conv{stage}": f"stage{stage}.reduce"}
    for number in range(shape.attentions):
        for part in "qkv":
            linear[f"tablock{stage}.{number}.c_{part}"] = f"stage{stage}.attention.{number}.{part}"
    names = {}
    for layer, depth in enumerate(shape.depths):
        theirs, ours = f"swintransformer{stage}.layers.{layer}", f"stage{stage}.layers.{layer}"
        linear[f"{theirs}.conv"] = f"{ours}.conv"
        for block in range(depth):
            their_block, our_block = f"{theirs}.blocks.{block}", f"{ours}.blocks.{block}"
            linear |= _block_names(their_block, our_block)
            names[f"{their_block}.attn.relative_position_bias_table"] = f"{our_block}.bias_table"
            names[f"{their_block}.attn.relative_position_index"] = f"{our_block}.index"
            if block % 2:
                names[f"{their_block}.attn_mask"] = f"{our_block}.mask"
    return names | _linear(linear)


def _block_names(theirs: str, ours: str) -> dict[str, str]:
    """Of a transformer block's layers; the ViT and the Swin blocks name them alike."""
    parts = {
        "norm1": "norm1",
        "attn.qkv": "qkv",
        "attn.proj": "proj",
        "norm2": "norm2",
        "mlp.fc1": "fc1",
        "mlp.fc2": "fc2",
    }
    return {f"{theirs}.{their_part}": f"{ours}.{our_part}" for their_part, our_part in parts.items()}


def _linear(names: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in names.items() for kind in ("weight", "bias")}
