"""Public NIMA checkpoints: three layouts, told apart by their names, with sizes read from their shapes.

``vgg16``: yunxiaoshi/Neural-IMage-Assessment. ``mobilenet``: truskovskiyk/nima.pytorch's MobileNetV2 (whose first block
expands too, and whose ends are not cut at 6). ``torchvision``: torchvision's MobileNetV2 with a last layer of ten.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from critiq_exporters.core.checkpoints import fill
from critiq_exporters.families.nima.network import (
    MOBILENET_STRIDES,
    SIDE,
    VGG_POOLS,
    VGG_WIDTHS,
    Block,
    MobileNetV2,
    Nima,
    Vgg16,
    published_blocks,
)

Layout = Literal["vgg16", "mobilenet", "torchvision"]

_UNUSED = (r".*\.num_batches_tracked",)
_NORM = {"weight": "weight", "bias": "bias", "running_mean": "mean", "running_var": "variance"}


def layout_of(state: Mapping[str, Tensor]) -> Layout:
    """Which layout a checkpoint is in; ``vgg16`` where nothing tells."""
    if any(name.startswith("base_model.") for name in state):
        return "mobilenet"
    return "torchvision" if any(name.startswith("features.18.") for name in state) else "vgg16"


def build(state: Mapping[str, Tensor], imagenet: bool) -> Nima:
    """The network of a checkpoint, filled, in evaluation mode.

    ``imagenet``: whether pictures are normalised by ImageNet's mean and deviation. Raises ``CheckpointError`` where the
    checkpoint is in none of the layouts, with what does not fit the nearest.
    """
    # What data-parallel training of the convolutions alone leaves.
    state = {name.replace("features.module.", "features."): tensor for name, tensor in state.items()}
    layout = layout_of(state)
    network, names = _vgg(state, imagenet) if layout == "vgg16" else _mobilenet(state, imagenet, layout)
    fill(network, state, names, _UNUSED)
    return network.eval()


def _vgg(state: Mapping[str, Tensor], imagenet: bool) -> tuple[Nima, dict[str, str]]:
    numbers = []
    place = 0
    for number in range(len(VGG_WIDTHS)):
        numbers.append(place)
        place += 3 if number in VGG_POOLS else 2  # the convolution, its ReLU, and the pooling
    try:
        widths = tuple(len(state[f"features.{number}.bias"]) for number in numbers)
    except (KeyError, TypeError):
        widths = VGG_WIDTHS
    network = Nima(Vgg16(widths), widths[-1] * (SIDE // 32) ** 2, imagenet)
    convolutions = {f"features.{place}": f"backbone.layers.{number}" for number, place in enumerate(numbers)}
    return network, _layers({**convolutions, "classifier.1": "head"})


def _mobilenet(state: Mapping[str, Tensor], imagenet: bool, layout: Layout) -> tuple[Nima, dict[str, str]]:
    own = layout == "mobilenet"
    prefix, head = ("base_model.0", "head.2") if own else ("features", "classifier.1")
    last = len(MOBILENET_STRIDES) + 1
    names = _conv_norm(f"{prefix}.0.0", f"{prefix}.0.1", "backbone.stem")
    names |= _conv_norm(f"{prefix}.{last}.0", f"{prefix}.{last}.1", "backbone.last") | _layers({head: "head"})
    for number in range(len(MOBILENET_STRIDES)):
        for layer, (conv, norm) in enumerate(_places(number, own)):
            theirs = f"{prefix}.{number + 1}.conv"
            names |= _conv_norm(f"{theirs}.{conv}", f"{theirs}.{norm}", f"backbone.blocks.{number}.layers.{layer}")
    blocks, features = published_blocks(first_expands=own), 1280
    try:
        blocks = tuple(_told_block(state, f"{prefix}.{number + 1}.conv", number, own) for number in range(last - 1))
        features = len(state[f"{prefix}.{last}.1.weight"])
    except (KeyError, TypeError, IndexError):
        pass  # filling lists what does not fit the published sizes
    return Nima(MobileNetV2(blocks, features, None if own else 6.0), features, imagenet), names


def _places(number: int, own: bool) -> list[tuple[str, str]]:
    """Where a block's convolutions and their normalisations stand in it."""
    if own:
        return [("0", "1"), ("3", "4"), ("6", "7")]
    inner = [("0.0", "0.1"), ("1.0", "1.1")] if number else [("0.0", "0.1")]
    return [*inner, (str(len(inner)), str(len(inner) + 1))]


def _told_block(state: Mapping[str, Tensor], theirs: str, number: int, own: bool) -> Block:
    places = _places(number, own)
    first, project = (state[f"{theirs}.{place}.weight"].shape for place in (places[0][0], places[-1][0]))
    expands = len(places) == 3
    inputs = first[1] if expands else first[0]
    return Block(inputs, project[1], project[0], MOBILENET_STRIDES[number], expands)


def _conv_norm(conv: str, norm: str, ours: str) -> dict[str, str]:
    return {f"{conv}.weight": f"{ours}.conv.weight"} | {
        f"{norm}.{theirs}": f"{ours}.{kind}" for theirs, kind in _NORM.items()
    }


def _layers(names: Mapping[str, str]) -> dict[str, str]:
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in names.items() for kind in ("weight", "bias")}
