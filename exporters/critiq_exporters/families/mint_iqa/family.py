"""MINT-IQA as a model to serve: the picture once, then each prompt with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from critiq_exporters.core.checkpoints import CheckpointError, find_checkpoint, read_state
from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.mint_iqa.checkpoint import build_scores
from critiq_exporters.families.mint_iqa.tokens import LENGTH, prompt_tokenizer
from critiq_server.bundles.manifest import (
    Calibration,
    Dimension,
    ImageInput,
    Licence,
    PromptInput,
    ResizeView,
    Stage,
    StageInput,
    Tokenizer,
)

_TOKENIZER_FILE = "tokenizer.json"
_PUBLISHED_FILE = "MINTIQA.pt"
_CALIBRATION = Calibration(
    raw=[0.0, 1.0], calibrated=[0.0, 1.0], method="none needed: trained on mean opinions divided by 100"
)

CARD = Card(
    family="mint-iqa",
    title="MINT-IQA",
    judges="quality, authenticity, correspondence with the prompt",
    raw_range="not bounded; trained on mean opinions divided by 100, about 0.3 to 0.7",
    direction="higher is better",
    scope="absolute, within the data set that the checkpoint was trained on",
    paper="Wang et al., Quality Assessment for AI Generated Images with Instruction Tuning (MINT-IQA)",
    code_licence="Apache-2.0, our own",
    weights="IntMeGroup/MINT-IQA, MINTIQA.pt (MIT; trained from EVA's tower and BLIP-2's Q-Former, whose licences "
    "apply too); vocabulary of bert-base-uncased (Apache-2.0)",
    memory="4.7 GB of weights (1.17 G parameters); 1.4 MB of features a picture",
)


def load(
    checkpoint: Path,
    tokenizer: Annotated[
        Path | None,
        Doc(
            "Folder or file of bert-base-uncased's tokenizer (tokenizer.json or vocab.txt); the checkpoint's folder "
            "where left out."
        ),
    ] = None,
    heads: Annotated[
        int,
        Doc("Attention heads of the query transformer, which the checkpoint does not tell; 12 in the published one."),
    ] = 12,
) -> Exportable:
    """MINT-IQA from a checkpoint in the authors' layout: quality, authenticity, correspondence with the prompt.

    The explaining half of a checkpoint, where it has one, is no part of the bundle.

    Raises:
        CheckpointError: the checkpoint or its tokenizer is not MINT-IQA's.
    """
    text = prompt_tokenizer(tokenizer or (checkpoint if checkpoint.is_dir() else checkpoint.parent))
    file = checkpoint_file(checkpoint)
    network = build_scores(read_state(file), heads)
    shape = network.shape
    if text.words > shape.words:
        raise CheckpointError(
            f"the tokenizer knows {text.words} tokens, the checkpoint's table has {shape.words}: they do not belong "
            "together; MINT-IQA was trained with bert-base-uncased"
        )
    vision = Stage(
        name="vision",
        graph="vision.onnx",
        inputs={"image": ImageInput(view=ResizeView(height=shape.image, width=shape.image, fit="crop_rounded"))},
        outputs=["features"],
        max_batch=8,
    )
    scores = Stage(
        name="scores",
        graph="scores.onnx",
        inputs={
            "picture": StageInput(stage="vision", output="features"),
            "ids": PromptInput(tokenizer="text", field="ids"),
            "mask": PromptInput(tokenizer="text", field="mask"),
        },
        outputs=["quality", "authenticity", "correspondence"],
        max_batch=16,
    )
    return Exportable(
        card=CARD,
        description="EVA's ViT-g, a transformer whose queries look at the picture and read the prompt, one regressor a "
        "dimension.",
        stages=(vision, scores),
        modules={"vision": network.vision, "scores": network.scores},
        dimensions=(
            _dimension("quality", "Quality", "How good the picture looks: colours, light, sharpness, detail."),
            _dimension("authenticity", "Authenticity", "How real the picture looks, free of what cannot be."),
            _dimension("correspondence", "Correspondence", "How well the picture shows what the prompt asks for."),
        ),
        licence=Licence(
            code="Apache-2.0",
            weights="MIT (MINT-IQA), and those of EVA and BLIP-2, which it was trained from",
            data="not in the bundle",
        ),
        source=f"checkpoint {file.name} in the layout of IntMeGroup/MINT-IQA",
        options={"heads": heads},
        tokenizers={"text": Tokenizer(file=_TOKENIZER_FILE, max_length=min(LENGTH, shape.context), pad_id=0)},
        files={_TOKENIZER_FILE: text.content},
    )


def checkpoint_file(checkpoint: Path) -> Path:
    """The checkpoint's file, also where other weights lie in the same folder."""
    published = checkpoint / _PUBLISHED_FILE
    return published if published.is_file() else find_checkpoint(checkpoint)


def _dimension(name: str, title: str, description: str) -> Dimension:
    return Dimension(
        name=name,
        title=title,
        description=f"{description} As people in the checkpoint's data set rated it; the prompt has a part in it.",
        stage="scores",
        output=name,
        needs_prompt=True,
        calibration=_CALIBRATION,
    )


FAMILY = Family(CARD, load)
