"""The two published layouts of a CLIP state dict: their parameter names, by ours.

OpenCLIP's names are those of OpenAI's own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Names of one layout. Entries of ``pairs`` stand for a weight and a bias."""

    title: str
    blocks: Mapping[str, str]
    """Where the blocks of each tower are; ``{}`` stands for the number."""
    pairs: Mapping[str, str]
    single: Mapping[str, str]
    block: Mapping[str, str]
    """Names inside a block, pairs all of them but those that ``block_single`` has."""
    block_single: Mapping[str, str] = field(default_factory=dict)


HUGGING_FACE = Layout(
    title="Hugging Face",
    blocks={"image": "vision_model.encoder.layers.{}.", "text": "text_model.encoder.layers.{}."},
    pairs={
        "image.norm_before": "vision_model.pre_layrnorm",
        "image.norm_after": "vision_model.post_layernorm",
        "text.norm_after": "text_model.final_layer_norm",
    },
    single={
        "image.patches.weight": "vision_model.embeddings.patch_embedding.weight",
        "image.class_token": "vision_model.embeddings.class_embedding",
        "image.positions": "vision_model.embeddings.position_embedding.weight",
        "image.project.weight": "visual_projection.weight",
        "text.words.weight": "text_model.embeddings.token_embedding.weight",
        "text.positions.weight": "text_model.embeddings.position_embedding.weight",
        "text.project.weight": "text_projection.weight",
        "logit_scale": "logit_scale",
    },
    block={
        "norm1": "layer_norm1",
        "q": "self_attn.q_proj",
        "k": "self_attn.k_proj",
        "v": "self_attn.v_proj",
        "out": "self_attn.out_proj",
        "norm2": "layer_norm2",
        "fc1": "mlp.fc1",
        "fc2": "mlp.fc2",
    },
)

OPEN_CLIP = Layout(
    title="OpenCLIP",
    blocks={"image": "visual.transformer.resblocks.{}.", "text": "transformer.resblocks.{}."},
    pairs={"image.norm_before": "visual.ln_pre", "image.norm_after": "visual.ln_post", "text.norm_after": "ln_final"},
    single={
        "image.patches.weight": "visual.conv1.weight",
        "image.class_token": "visual.class_embedding",
        "image.positions": "visual.positional_embedding",
        "image.project.weight": "visual.proj",
        "text.words.weight": "token_embedding.weight",
        "text.positions.weight": "positional_embedding",
        "text.project.weight": "text_projection",
        "logit_scale": "logit_scale",
    },
    block={"norm1": "ln_1", "out": "attn.out_proj", "norm2": "ln_2", "fc1": "mlp.c_fc", "fc2": "mlp.c_proj"},
    block_single={
        f"{part}.{kind}": f"attn.in_proj_{kind}[{part}]" for part in ("q", "k", "v") for kind in ("weight", "bias")
    },
)

UNUSED = (
    r"(vision|text)_model\.embeddings\.position_ids",
    r"attn_mask|input_resolution|context_length|vocab_size",
    r"visual\..*\.num_batches_tracked",
)
"""Entries that some files hold beside the parameters: tables and sizes that follow from the architecture."""

_TRANSPOSED = ("visual.proj", "text_projection")


def layout_of(state: Mapping[str, Tensor]) -> Layout | None:
    """Which of the two layouts ``state`` has."""
    if any(name.startswith(("vision_model.", "text_model.")) for name in state):
        return HUGGING_FACE
    if any(name.startswith("visual.") for name in state):
        return OPEN_CLIP
    return None


def is_resnet(state: Mapping[str, Tensor]) -> bool:
    """Whether the picture tower is a residual network."""
    return any(name.startswith("visual.layer1.") for name in state)


def unpacked(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """``state`` with one entry for each of our parameters.

    OpenCLIP's layout keeps the weights of queries, keys and values in one tensor (they become ``NAME[q]``, ``NAME[k]``
    and ``NAME[v]``) and multiplies projections from the other side.
    """
    if layout is not OPEN_CLIP:
        return dict(state)
    entries = {}
    for name, value in state.items():
        if name.endswith(("attn.in_proj_weight", "attn.in_proj_bias")):
            for part, third in zip("qkv", value.chunk(3), strict=False):
                entries[f"{name}[{part}]"] = third
        elif name in _TRANSPOSED and value.dim() == 2:
            entries[name] = value.T
        else:
            entries[name] = value
    return entries


def transformer_names(layout: Layout, tower: str, layers: int) -> dict[str, str]:
    """Our names of one tower's parameters by the layout's; ``tower`` is ``image`` or ``text``."""
    names = {theirs: ours for ours, theirs in layout.single.items() if ours.startswith(f"{tower}.")}
    for ours, theirs in layout.pairs.items():
        if ours.startswith(f"{tower}."):
            names |= _pair(theirs, ours)
    for number in range(layers):
        their_block, our_block = layout.blocks[tower].format(number), f"{tower}.blocks.{number}."
        for ours, theirs in layout.block.items():
            names |= _pair(their_block + theirs, our_block + ours)
        names |= {their_block + theirs: our_block + ours for ours, theirs in layout.block_single.items()}
    return names


def resnet_names(layers: tuple[int, ...]) -> dict[str, str]:
    """Our names of a residual picture tower's parameters, by OpenCLIP's."""
    names = {"visual.attnpool.positional_embedding": "image.pool.positions"}
    for theirs, ours in {"q_proj": "q", "k_proj": "k", "v_proj": "v", "c_proj": "out"}.items():
        names |= _pair(f"visual.attnpool.{theirs}", f"image.pool.{ours}")
    names |= _convolutions("visual.", "image.")
    for stage, depth in enumerate(layers):
        for block in range(depth):
            theirs, ours = f"visual.layer{stage + 1}.{block}.", f"image.stages.{stage}.{block}."
            names |= _convolutions(theirs, ours)
            if block == 0:
                names[f"{theirs}downsample.0.weight"] = f"{ours}short_cut.weight"
                names |= _norm(f"{theirs}downsample.1", f"{ours}short_cut_norm")
    return names


def _convolutions(theirs: str, ours: str) -> dict[str, str]:
    names = {}
    for number in (1, 2, 3):
        names[f"{theirs}conv{number}.weight"] = f"{ours}conv{number}.weight"
        names |= _norm(f"{theirs}bn{number}", f"{ours}norm{number}")
    return names


def _norm(theirs: str, ours: str) -> dict[str, str]:
    parts = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "var"}
    return {f"{theirs}.{their_part}": f"{ours}.{our_part}" for their_part, our_part in parts.items()}


def _pair(theirs: str, ours: str) -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for kind in ("weight", "bias")}
