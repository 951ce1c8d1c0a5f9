"""CLIP-IQA: attributes of a picture from pairs of opposite texts (Wang, Chan and Loy, AAAI 2023), from the paper.

The picture is compared with both texts of a pair; a softmax over the two says which is nearer. The texts' embeddings
are constants of the bundle, so that a server needs neither the text tower nor a tokenizer.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from torch import Tensor
from typing_extensions import Doc

from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.clip.folder import Activation, Folder, open_clip_folder
from critiq_exporters.families.clip.heads import Antonyms
from critiq_exporters.families.clip.network import PictureTower, TextEncoder
from critiq_exporters.families.clip.options import ACTIVATION, TOKENIZER
from critiq_exporters.families.clip.resnet import PictureResnet
from critiq_exporters.families.clip.stages import picture_parts
from critiq_server.bundles.manifest import (
    Calibration,
    Dimension,
    Licence,
    NativeView,
    ResizeView,
    Stage,
    StageInput,
    View,
)

PAIRS: Mapping[str, tuple[str, str]] = {
    "visual_quality": ("Good photo.", "Bad photo."),
    "brightness": ("Bright photo.", "Dark photo."),
    "cleanness": ("Clean photo.", "Noisy photo."),
    "colourfulness": ("Colorful photo.", "Dull photo."),
    "sharpness": ("Sharp photo.", "Blurry photo."),
    "contrast": ("High contrast photo.", "Low contrast photo."),
    "complexity": ("Complex photo.", "Simple photo."),
    "naturalness": ("Natural photo.", "Synthetic photo."),
    "happiness": ("Happy photo.", "Sad photo."),
    "scariness": ("Scary photo.", "Peaceful photo."),
    "newness": ("New photo.", "Old photo."),
}
"""The attributes of the paper, the first text being what 1 stands for."""

Fit = Literal["native", "crop", "stretch"]
_LONGEST = 1024
_SHORTEST = 32

CARD = Card(
    family="clip-iqa",
    title="CLIP-IQA",
    judges="visual quality and other attributes, each by a pair of opposite texts",
    raw_range="0 to 1: the first text's share of the pair",
    direction="higher is nearer to the first text",
    scope="absolute, within one CLIP checkpoint",
    paper="Wang, Chan and Loy, Exploring CLIP for Assessing the Look and Feel of Images, AAAI 2023",
    code_licence="Apache-2.0, our own, from the paper",
    weights="any CLIP in Hugging Face's or OpenCLIP's layout; the paper's: OpenAI's RN50 (MIT)",
    memory="153 MB of weights for RN50 (38 M parameters in the picture tower), 1.2 GB for ViT-L/14",
)


def load(
    checkpoint: Path,
    tokenizer: Annotated[Path | None, Doc(TOKENIZER)] = None,
    activation: Annotated[Activation, Doc(ACTIVATION)] = "config",
    attributes: Annotated[
        str,
        Doc(
            "What to judge, with semicolons: names of the paper's pairs "
            f"({', '.join(PAIRS)}) or your own as NAME=FIRST TEXT|SECOND TEXT."
        ),
    ] = "visual_quality;brightness;cleanness;colourfulness;sharpness;contrast",
    fit: Annotated[
        Fit | None,
        Doc(
            "native: the picture at its own resolution, as the paper has it; for residual networks only, and their "
            "default. crop, stretch: at a fixed size, without its borders or without its proportions."
        ),
    ] = None,
    side: Annotated[
        int | None,
        Doc("Pixels: the longest side of native pictures (1024), or the side of fixed ones (the network's own)."),
    ] = None,
) -> Exportable:
    """CLIP-IQA from a CLIP checkpoint: attributes of a picture from pairs of opposite texts (AAAI 2023).

    Raises:
        CheckpointError: the checkpoint or its tokenizer is not a CLIP's.
        ValueError: an attribute is neither known nor a pair, or the picture tower does not take ``side``.
    """
    pairs = parse_pairs(attributes)
    folder = open_clip_folder(checkpoint, tokenizer=tokenizer, activation=activation, positions=False)
    view = _view(folder.network.image, fit, side)
    picture = picture_parts(folder, view, max_batch=4 if isinstance(view, NativeView) else 16)
    stage = Stage(
        name="antonyms",
        graph="antonyms.onnx",
        inputs={"image": StageInput(stage="image", output="features")},
        outputs=list(pairs),
        max_batch=64,
        cache=False,
    )
    head = Antonyms(embeddings(folder, pairs), folder.network.scale).eval()
    return Exportable(
        card=CARD,
        description="CLIP's embedding of a picture against pairs of opposite texts: " + "; ".join(pairs),
        stages=(*picture.stages, stage),
        modules={**picture.modules, "antonyms": head},
        dimensions=tuple(_dimension(name, texts) for name, texts in pairs.items()),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=f"CLIP checkpoint {checkpoint.name}",
        options={
            "activation": activation,
            "attributes": attributes,
            **({"fit": fit} if fit else {}),
            **({"side": side} if side else {}),
        },
    )


def _view(tower: PictureTower, fit: Fit | None, side: int | None) -> View:
    free = isinstance(tower, PictureResnet)
    chosen: Fit = fit or ("native" if free else "crop")
    if not free and (chosen == "native" or side not in (None, tower.side)):
        raise ValueError(
            f"this checkpoint's picture tower is a transformer with {tower.side} pixels a side: it takes no --side but "
            "its own, and no --fit native"
        )
    if chosen == "native":
        longest = side or _LONGEST
        if longest < _SHORTEST:
            raise ValueError(f"--side {longest} is less than the {_SHORTEST} pixels that the network needs")
        return NativeView(shorter_min=_SHORTEST, longer_max=longest)
    length = side or tower.side
    return ResizeView(height=length, width=length, fit="crop_rounded" if chosen == "crop" else "stretch")


def parse_pairs(text: str) -> dict[str, tuple[str, str]]:
    """``NAME`` or ``NAME=FIRST|SECOND``, with semicolons, as pairs of texts by name.

    Raises:
        ValueError: an entry is neither, a name is used twice or is no name of a dimension.
    """
    pairs: dict[str, tuple[str, str]] = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, _, given = (part.strip() for part in entry.partition("="))
        texts = tuple(part.strip() for part in given.split("|")) if given else PAIRS.get(name, ())
        if len(texts) != 2 or not all(texts):
            raise ValueError(
                f"--attributes: {entry!r} is neither one of {', '.join(PAIRS)} nor NAME=FIRST TEXT|SECOND TEXT"
            )
        if not re.fullmatch(r"[a-z0-9][a-z0-9_]{0,63}", name):
            raise ValueError(f"--attributes: {name!r} is no name: use small letters, digits and _")
        if name in pairs:
            raise ValueError(f"--attributes: {name!r} stands twice")
        pairs[name] = (texts[0], texts[1])
    if not pairs:
        raise ValueError("--attributes names nothing to judge")
    return pairs


def embeddings(folder: Folder, pairs: Mapping[str, tuple[str, str]]) -> Tensor:
    """Of the pairs' texts: float32 ``[pairs, 2, embedding]``, of length one."""
    encoder = TextEncoder(folder.network.text).eval()
    with torch.inference_mode():
        rows = [encoder(torch.tensor([ids])) for texts in pairs.values() for ids in folder.tokenizer.encode(texts)]
    return torch.unflatten(torch.cat(rows), 0, (-1, 2)).clone()


def _dimension(name: str, texts: tuple[str, str]) -> Dimension:
    return Dimension(
        name=name,
        title=name.replace("_", " ").capitalize(),
        description=f"Whether the picture is nearer to {texts[0]!r} (1) than to {texts[1]!r} (0).",
        stage="antonyms",
        output=name,
        minimum=0.0,
        maximum=1.0,
        calibration=Calibration(
            raw=[0.0, 1.0], calibrated=[0.0, 1.0], method="none: the share itself, not fitted to people's opinions"
        ),
    )


FAMILY = Family(CARD, load)
