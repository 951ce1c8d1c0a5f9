"""The published ImageReward layout: original parameter names, and the sizes that their shapes tell."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from critiq_exporters.core.checkpoints import CheckpointError, fill
from critiq_exporters.families.clip.heads import PERCEPTRON_NAMES
from critiq_exporters.families.imagereward.network import ImageReward, Shape

UNUSED = (r"blip\.(vision|text)_proj\..*", r"blip\.text_encoder\.embeddings\.position_ids")
"""BLIP's heads for contrastive training, and a table of numbers in a row."""

_PICTURE, _TEXT = "blip.visual_encoder", "blip.text_encoder"


def build(state: Mapping[str, Tensor]) -> ImageReward:
    """The network of a checkpoint, filled, in evaluation mode.

    Raises:
        CheckpointError: the checkpoint is not an ImageReward; the message lists what does not fit.
    """
    try:
        shape = read_shape(state)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint is no ImageReward that is known here: {error}") from error
    network = ImageReward(shape)
    fill(network, state, names(shape), UNUSED)
    return network.eval()


def read_shape(state: Mapping[str, Tensor]) -> Shape:
    """Sizes as the parameters' shapes tell them, published ones where they tell nothing: filling then lists the rest.

    Raises:
        ValueError: the sizes make no network.
    """

    def size(name: str, axis: int) -> int:
        return state[name].shape[axis]

    def count(pattern: str) -> int:
        numbers = re.compile(pattern)
        return max((int(match[1]) for name in state if (match := numbers.match(name))), default=-1) + 1

    try:
        patch = size(f"{_PICTURE}.patch_embed.proj.weight", 2)
        return Shape(
            image=patch * math.isqrt(max(0, size(f"{_PICTURE}.pos_embed", 1) - 1)),
            patch=patch,
            width=size(f"{_PICTURE}.cls_token", 2),
            hidden=size(f"{_PICTURE}.blocks.0.mlp.fc1.weight", 0),
            layers=count(rf"{re.escape(_PICTURE)}\.blocks\.(\d+)\."),
            text_width=size(f"{_TEXT}.embeddings.word_embeddings.weight", 1),
            text_hidden=size(f"{_TEXT}.encoder.layer.0.intermediate.dense.weight", 0),
            text_layers=count(rf"{re.escape(_TEXT)}\.encoder\.layer\.(\d+)\."),
            words=size(f"{_TEXT}.embeddings.word_embeddings.weight", 0),
            context=size(f"{_TEXT}.embeddings.position_embeddings.weight", 0),
        )
    except (KeyError, IndexError):
        return Shape()


def names(shape: Shape) -> dict[str, str]:
    """Our names of all parameters by the published ones."""
    single = {
        f"{_PICTURE}.cls_token": "picture.class_token",
        f"{_PICTURE}.pos_embed": "picture.positions",
        f"{_TEXT}.embeddings.word_embeddings.weight": "reward.words.weight",
        f"{_TEXT}.embeddings.position_embeddings.weight": "reward.positions.weight",
    }
    pairs = {
        f"{_PICTURE}.patch_embed.proj": "picture.patches",
        f"{_PICTURE}.norm": "picture.norm",
        f"{_TEXT}.embeddings.LayerNorm": "reward.norm",
    }
    for number in range(shape.layers):
        theirs, ours = f"{_PICTURE}.blocks.{number}", f"picture.blocks.{number}"
        pairs |= {f"{theirs}.{part}": f"{ours}.{part}" for part in ("norm1", "norm2")}
        pairs |= {f"{theirs}.attn.qkv": f"{ours}.qkv", f"{theirs}.attn.proj": f"{ours}.out"}
        pairs |= {f"{theirs}.mlp.{part}": f"{ours}.{part}" for part in ("fc1", "fc2")}
    for number in range(shape.text_layers):
        theirs, ours = f"{_TEXT}.encoder.layer.{number}", f"reward.layers.{number}"
        for their_part, our_part in (("attention", "own"), ("crossattention", "cross")):
            pairs |= {
                f"{theirs}.{their_part}.self.query": f"{ours}.{our_part}.q",
                f"{theirs}.{their_part}.self.key": f"{ours}.{our_part}.k",
                f"{theirs}.{their_part}.self.value": f"{ours}.{our_part}.v",
                f"{theirs}.{their_part}.output.dense": f"{ours}.{our_part}.out",
                f"{theirs}.{their_part}.output.LayerNorm": f"{ours}.{our_part}.norm",
            }
        pairs |= {
            f"{theirs}.intermediate.dense": f"{ours}.fc1",
            f"{theirs}.output.dense": f"{ours}.fc2",
            f"{theirs}.output.LayerNorm": f"{ours}.norm",
        }
    both = {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in pairs.items() for kind in ("weight", "bias")}
    head = {f"mlp.{theirs}": f"reward.head.{ours}" for theirs, ours in PERCEPTRON_NAMES.items()}
    return single | both | head
