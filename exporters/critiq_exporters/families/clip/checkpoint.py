"""A CLIP checkpoint in either layout -> our network, filled: sizes from the shapes of its parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from critiq_exporters.core.checkpoints import CheckpointError, fill
from critiq_exporters.families.clip.layouts import (
    UNUSED,
    Layout,
    is_resnet,
    layout_of,
    resnet_names,
    transformer_names,
    unpacked,
)
from critiq_exporters.families.clip.network import (
    Clip,
    PictureShape,
    PictureTransformer,
    TextShape,
    TextTransformer,
    Tower,
)
from critiq_exporters.families.clip.resnet import PictureResnet, ResnetShape

_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""Of picture towers as published (ViT-H, ViT-g, ViT-bigG); all others have heads of 64."""
_HEAD_WIDTH = 64


@dataclass(frozen=True)
class Settings:
    """What a state dict does not tell: it comes from the file of settings beside it."""

    quick_gelu: bool
    image_heads: int | None = None
    text_heads: int | None = None
    """Published widths of a head where none are given."""
    image_eps: float = 1e-5
    text_eps: float = 1e-5
    end: int | None = None
    """Id of the token that closes a text, where the settings tell it."""


def build(state: Mapping[str, Tensor], settings: Settings, end: int = 49407, positions: bool = True) -> Clip:
    """The network of a checkpoint, filled, in evaluation mode.

    Args:
        state: parameters by name, in Hugging Face's layout or in OpenCLIP's.
        settings: what the parameters do not tell.
        end: id of the token that closes a text.
        positions: whether a residual picture tower uses its table of positions.

    Raises:
        CheckpointError: the checkpoint is not a CLIP; the message lists what does not fit.
    """
    layout = layout_of(state)
    if layout is None:
        shown = ", ".join(list(state)[:3]) or "nothing"
        raise CheckpointError(
            "the checkpoint is no CLIP in Hugging Face's layout (vision_model.*, text_model.*) nor in OpenCLIP's "
            f"(visual.*, transformer.*); it holds {shown}, ..."
        )
    entries = unpacked(state, layout)
    try:
        text = _text_shape(entries, layout, settings, end)
        if is_resnet(entries):
            picture = _resnet_shape(entries, positions)
            network = Clip(PictureResnet(picture), TextTransformer(text))
            names = resnet_names(picture.layers)
        else:
            shape = _picture_shape(entries, layout, settings)
            network = Clip(PictureTransformer(shape), TextTransformer(text))
            names = transformer_names(layout, "image", shape.tower.layers)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint is no CLIP that is known here: {error}") from error
    names |= transformer_names(layout, "text", text.tower.layers) | {"logit_scale": "logit_scale"}
    fill(network, entries, names, UNUSED)
    return network.eval()


def _picture_shape(state: Mapping[str, Tensor], layout: Layout, settings: Settings) -> PictureShape:
    """Sizes as the shapes tell them, published ones where they tell nothing: filling then lists what does not fit."""

    def size(name: str, axis: int) -> int:
        return state[layout.single[f"image.{name}"]].shape[axis]

    try:
        patch = size("patches.weight", 2)
        return PictureShape(
            tower=_tower(state, layout, "image", size("patches.weight", 0), settings),
            image=patch * math.isqrt(max(0, size("positions", 0) - 1)),
            patch=patch,
            embedding=size("project.weight", 0),
        )
    except (KeyError, IndexError):
        return PictureShape()


def _text_shape(state: Mapping[str, Tensor], layout: Layout, settings: Settings, end: int) -> TextShape:
    def size(name: str, axis: int) -> int:
        return state[layout.single[f"text.{name}"]].shape[axis]

    try:
        return TextShape(
            tower=_tower(state, layout, "text", size("words.weight", 1), settings),
            words=size("words.weight", 0),
            context=size("positions.weight", 0),
            embedding=size("project.weight", 0),
            end=end,
        )
    except (KeyError, IndexError):
        return TextShape()


def _resnet_shape(state: Mapping[str, Tensor], positions: bool) -> ResnetShape:
    try:
        places = state["visual.attnpool.positional_embedding"].shape[0] - 1
        depths = [_count(state, f"visual.layer{stage}.{{}}.") for stage in (1, 2, 3, 4)]
        return ResnetShape(
            width=state["visual.conv3.weight"].shape[0],
            layers=(depths[0], depths[1], depths[2], depths[3]),
            image=32 * math.isqrt(max(0, places)),
            embedding=state["visual.attnpool.c_proj.weight"].shape[0],
            positions=positions,
        )
    except (KeyError, IndexError):
        return ResnetShape(positions=positions)


def _tower(state: Mapping[str, Tensor], layout: Layout, name: str, width: int, settings: Settings) -> Tower:
    blocks = layout.blocks[name]
    given = settings.image_heads if name == "image" else settings.text_heads
    usual = _HEAD_WIDTHS.get(width, _HEAD_WIDTH) if name == "image" else _HEAD_WIDTH
    if given is None and width % usual:
        raise ValueError(f"a width of {width} tells no number of heads; pass the folder with the settings")
    return Tower(
        width=width,
        hidden=state[f"{blocks.format(0)}{layout.block['fc1']}.weight"].shape[0],
        layers=_count(state, blocks),
        heads=given or width // usual,
        quick_gelu=settings.quick_gelu,
        eps=settings.image_eps if name == "image" else settings.text_eps,
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """How many numbers ``pattern`` takes: one more than the largest, so that a gap shows as missing."""
    before, after = (re.escape(part) for part in pattern.split("{}"))
    numbers = re.compile(rf"{before}(\d+){after}")
    found = [int(match[1]) for name in state if (match := numbers.match(name))]
    return max(found, default=-1) + 1
