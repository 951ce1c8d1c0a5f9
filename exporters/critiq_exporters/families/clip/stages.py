"""The stages that all families of this folder are made of: picture -> embedding, text -> embedding, head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from critiq_exporters.families.clip.folder import Folder
from critiq_exporters.families.clip.network import ImageEncoder, TextEncoder
from critiq_server.bundles.manifest import ImageInput, PromptInput, ResizeView, Stage, StageInput, Tokenizer, View

TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class Parts:
    """Stages with their modules, and what they read."""

    stages: tuple[Stage, ...]
    modules: Mapping[str, nn.Module]
    tokenizers: Mapping[str, Tokenizer]
    files: Mapping[str, bytes]


def picture_parts(folder: Folder, view: View | None = None, max_batch: int = 16) -> Parts:
    """Stage ``image``: pixels to an embedding of length one, output ``features``.

    Pictures are prepared as OpenAI's code does, the shorter side to the network's and the middle cut out, unless
    ``view`` says otherwise.
    """
    side = folder.network.image.side
    stage = Stage(
        name="image",
        graph="image.onnx",
        inputs={"image": ImageInput(view=view or ResizeView(height=side, width=side, fit="crop_rounded"))},
        outputs=["features"],
        max_batch=max_batch,
    )
    module = ImageEncoder(folder.network.image, folder.mean, folder.std).eval()
    return Parts((stage,), {"image": module}, {}, {})


def text_parts(folder: Folder, max_batch: int = 16) -> Parts:
    """Stage ``text``: the prompt to an embedding of length one, output ``features``; with its tokenizer."""
    stage = Stage(
        name="text",
        graph="text.onnx",
        inputs={"ids": PromptInput(tokenizer="text")},
        outputs=["features"],
        max_batch=max_batch,
    )
    # What follows the closing token is not looked at, so anything serves as padding.
    tokenizer = Tokenizer(file=TOKENIZER_FILE, max_length=folder.network.text.shape.context, pad_id=0)
    return Parts(
        (stage,),
        {"text": TextEncoder(folder.network.text).eval()},
        {"text": tokenizer},
        {TOKENIZER_FILE: folder.tokenizer.content},
    )


def match_parts(folder: Folder, head: nn.Module, view: View | None = None) -> Parts:
    """Stages ``image``, ``text`` and ``match``: a head that takes both embeddings and gives the output ``score``.

    A prompt that comes with many pictures is encoded once, and a picture that comes with many prompts too.
    """
    match = Stage(
        name="match",
        graph="match.onnx",
        inputs={name: StageInput(stage=name, output="features") for name in ("image", "text")},
        outputs=["score"],
        max_batch=64,
        cache=False,
    )
    picture, text = picture_parts(folder, view), text_parts(folder)
    return Parts(
        (*picture.stages, *text.stages, match),
        {**picture.modules, **text.modules, "match": head.eval()},
        text.tokenizers,
        text.files,
    )
