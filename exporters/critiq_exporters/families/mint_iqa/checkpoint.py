"""The published MINT-IQA layout: original parameter names, and the sizes that their shapes tell.

``qformer1`` scores, ``qformer2`` explains; a checkpoint of the first training stage holds the former only. What the
released file holds beside these two (the frozen language model, or not) is not known, so both are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from critiq_exporters.core.checkpoints import CheckpointError, fill
from critiq_exporters.families.mint_iqa.network import Explanation, MintIqa, Shape, looks

_Half = TypeVar("_Half", MintIqa, Explanation)
SCORING, EXPLAINING = "qformer1", "qformer2"
LANGUAGE_MODEL = f"{EXPLAINING}.llm_model"
_NEVER_READ = r"(temp|vision_proj\..*|text_proj\..*|Qformer\.bert\.embeddings\.position_ids)"
"""Of both halves: BLIP-2's heads for contrastive training, and a table of numbers in a row."""


def build_scores(state: Mapping[str, Tensor], heads: int = Shape.text_heads) -> MintIqa:
    """The scoring half of a checkpoint, filled, in evaluation mode.

    ``heads`` are those of the query transformer, which no shape tells.

    Raises:
        CheckpointError: the checkpoint is not a MINT-IQA; the message lists what does not fit.
    """
    shape = _shape(state, SCORING, heads)
    others = [rf"{EXPLAINING}\..*"]
    return _filled(MintIqa, shape, state, scoring_names(shape), [*unused(SCORING, shape), *others])


def build_explanation(state: Mapping[str, Tensor], heads: int = Shape.text_heads) -> Explanation:
    """The explaining half of a checkpoint, without its language model, filled, in evaluation mode.

    Raises:
        CheckpointError: the checkpoint has no such half, or it does not fit.
    """
    if not any(name.startswith(f"{EXPLAINING}.") for name in state):
        raise CheckpointError(
            f"the checkpoint holds no parameters of {EXPLAINING}: it is one of the first training stage, which gives "
            "scores and no explanations"
        )
    shape = _shape(state, EXPLAINING, heads)
    others = [rf"{SCORING}\..*", rf"{re.escape(LANGUAGE_MODEL)}\..*"]
    return _filled(Explanation, shape, state, explaining_names(shape), [*unused(EXPLAINING, shape), *others])


def unused(half: str, shape: Shape) -> tuple[str, ...]:
    """Regular expressions of the parameters of ``half`` that no output depends on."""
    last = rf"Qformer\.bert\.encoder\.layer\.{shape.text_layers - 1}\.(intermediate|output)\..*"
    return rf"{half}\.{_NEVER_READ}", rf"{half}\.{last}"


def read_shape(state: Mapping[str, Tensor], half: str, heads: int = Shape.text_heads) -> Shape:
    """Sizes as the parameters' shapes tell them, published ones where they tell nothing: filling then lists the rest.

    Raises:
        ValueError: the sizes make no network.
    """
    vision, bert = f"{half}.visual_encoder", f"{half}.Qformer.bert"

    def size(name: str, axis: int) -> int:
        return state[name].shape[axis]

    def count(prefix: str) -> int:
        numbers = re.compile(rf"{re.escape(prefix)}\.(\d+)\.")
        return max((int(match[1]) for name in state if (match := numbers.match(name))), default=-1) + 1

    try:
        patch = size(f"{vision}.patch_embed.proj.weight", 2)
        return Shape(
            image=patch * math.isqrt(max(0, size(f"{vision}.pos_embed", 1) - 1)),
            patch=patch,
            width=size(f"{vision}.cls_token", 2),
            hidden=size(f"{vision}.blocks.0.mlp.fc1.weight", 0),
            layers=count(f"{vision}.blocks"),
            queries=size(f"{half}.query_tokens", 1),
            text_width=size(f"{bert}.embeddings.word_embeddings.weight", 1),
            text_hidden=size(f"{bert}.encoder.layer.0.intermediate_query.dense.weight", 0),
            text_layers=count(f"{bert}.encoder.layer"),
            text_heads=heads,
            words=size(f"{bert}.embeddings.word_embeddings.weight", 0),
            context=size(f"{bert}.embeddings.position_embeddings.weight", 0),
            regressor=size(f"{half}.quality1.0.weight", 0) if half == SCORING else Shape.regressor,
            embedding=size(f"{half}.llm_proj.weight", 0) if half == EXPLAINING else Shape.embedding,
        )
    except (KeyError, IndexError):
        return Shape()


def scoring_names(shape: Shape) -> dict[str, str]:
    """Our names of all parameters of :class:`MintIqa` by the published ones."""
    judges = {"quality1": "quality", "quality2": "authenticity", "quality3": "correspondence"}
    pairs = {
        f"{SCORING}.{theirs}.{number}": f"scores.{ours}.{part}"
        for theirs, ours in judges.items()
        for number, part in enumerate(("first", "second"))
    }
    single = {f"{SCORING}.query_tokens": "scores.queries"}
    return single | _both(pairs) | _vision(shape, SCORING) | _transformer(shape, SCORING, "scores.transformer")


def explaining_names(shape: Shape) -> dict[str, str]:
    """Our names of all parameters of :class:`Explanation` by the published ones."""
    pairs = {f"{EXPLAINING}.zero_forward": "condition", f"{EXPLAINING}.llm_proj": "project"}
    single = {f"{EXPLAINING}.query_tokens": "queries"}
    return single | _both(pairs) | _vision(shape, EXPLAINING) | _transformer(shape, EXPLAINING, "transformer")


def _vision(shape: Shape, half: str) -> dict[str, str]:
    theirs = f"{half}.visual_encoder"
    single = {f"{theirs}.cls_token": "vision.class_token", f"{theirs}.pos_embed": "vision.positions"}
    pairs = {f"{theirs}.patch_embed.proj": "vision.patches", f"{half}.ln_vision": "vision.norm"}
    for number in range(shape.layers):
        block, ours = f"{theirs}.blocks.{number}", f"vision.blocks.{number}"
        single |= {f"{block}.attn.{bias}": f"{ours}.{bias}" for bias in ("q_bias", "v_bias")}
        single[f"{block}.attn.qkv.weight"] = f"{ours}.qkv.weight"
        pairs |= {f"{block}.{part}": f"{ours}.{part}" for part in ("norm1", "norm2")}
        pairs |= {f"{block}.mlp.{part}": f"{ours}.{part}" for part in ("fc1", "fc2")}
        pairs[f"{block}.attn.proj"] = f"{ours}.out"
    return single | _both(pairs)


def _transformer(shape: Shape, half: str, place: str) -> dict[str, str]:
    bert = f"{half}.Qformer.bert"
    single = {
        f"{bert}.embeddings.word_embeddings.weight": f"{place}.words.weight",
        f"{bert}.embeddings.position_embeddings.weight": f"{place}.positions.weight",
    }
    pairs = {f"{bert}.embeddings.LayerNorm": f"{place}.norm"}
    for number in range(shape.text_layers):
        theirs, ours = f"{bert}.encoder.layer.{number}", f"{place}.layers.{number}"
        pairs |= _attention(f"{theirs}.attention", f"{ours}.own")
        pairs |= _perceptron(theirs, "_query", f"{ours}.of_queries")
        if looks(number):
            pairs |= _attention(f"{theirs}.crossattention", f"{ours}.cross")
        if number < shape.text_layers - 1:
            pairs |= _perceptron(theirs, "", f"{ours}.of_words")
    return single | _both(pairs)


def _attention(theirs: str, ours: str) -> dict[str, str]:
    return {
        f"{theirs}.self.query": f"{ours}.q",
        f"{theirs}.self.key": f"{ours}.k",
        f"{theirs}.self.value": f"{ours}.v",
        f"{theirs}.output.dense": f"{ours}.out",
        f"{theirs}.output.LayerNorm": f"{ours}.norm",
    }


def _perceptron(theirs: str, suffix: str, ours: str) -> dict[str, str]:
    return {
        f"{theirs}.intermediate{suffix}.dense": f"{ours}.fc1",
        f"{theirs}.output{suffix}.dense": f"{ours}.fc2",
        f"{theirs}.output{suffix}.LayerNorm": f"{ours}.norm",
    }


def _both(pairs: Mapping[str, str]) -> dict[str, str]:
    """Names of modules to names of their weights and biases."""
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in pairs.items() for kind in ("weight", "bias")}


def _filled(
    kind: type[_Half], shape: Shape, state: Mapping[str, Tensor], names: Mapping[str, str], skipped: Sequence[str]
) -> _Half:
    with torch.device("meta"):  # a file that does not fit is found before gigabytes are taken
        fill(kind(shape), state, names, skipped)
    network = kind(shape)
    fill(network, state, names, skipped)
    return network.eval()


def _shape(state: Mapping[str, Tensor], half: str, heads: int) -> Shape:
    try:
        return read_shape(state, half, heads)
    except ValueError as error:
        raise CheckpointError(f"the checkpoint is no MINT-IQA that is known here: {error}") from error
