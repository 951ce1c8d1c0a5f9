"""ImageReward as a model to serve: the picture once, then each prompt with it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from critiq_exporters.core.checkpoints import CheckpointError, find_checkpoint, read_state
from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.clip.tokenizer import bert_tokenizer
from critiq_exporters.families.imagereward.checkpoint import build
from critiq_server.bundles.manifest import (
    Dimension,
    ImageInput,
    Licence,
    PromptInput,
    ResizeView,
    Stage,
    StageInput,
    Tokenizer,
)

LENGTH = 35
"""Tokens that the authors cut prompts to."""
_TOKENIZER_FILE = "tokenizer.json"

CARD = Card(
    family="imagereward",
    title="ImageReward",
    judges="which picture of a prompt people prefer",
    raw_range="not bounded; mean 0 and standard deviation 1 over the authors' data, about -2 to 2",
    direction="higher is better",
    scope="within a prompt",
    paper="Xu et al., ImageReward, NeurIPS 2023",
    code_licence="Apache-2.0, our own",
    weights="THUDM/ImageReward, ImageReward.pt (Apache-2.0); vocabulary of bert-base-uncased (Apache-2.0)",
    memory="1.8 GB of weights (447 M parameters); 0.8 MB of features a picture",
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
) -> Exportable:
    """ImageReward from its published checkpoint: what people prefer among pictures of a prompt (NeurIPS 2023).

    Raises:
        CheckpointError: the checkpoint or its tokenizer is not ImageReward's.
    """
    text = bert_tokenizer(tokenizer or (checkpoint if checkpoint.is_dir() else checkpoint.parent))
    file = checkpoint / "ImageReward.pt"
    network = build(read_state(file if file.is_file() else find_checkpoint(checkpoint)))
    shape = network.shape
    if text.words > shape.words:
        raise CheckpointError(
            f"the tokenizer knows {text.words} tokens, the checkpoint's table has {shape.words}: they do not belong "
            "together; ImageReward was trained with bert-base-uncased"
        )
    picture = Stage(
        name="picture",
        graph="picture.onnx",
        inputs={"image": ImageInput(view=ResizeView(height=shape.image, width=shape.image, fit="crop_rounded"))},
        outputs=["features"],
        max_batch=16,
    )
    reward = Stage(
        name="reward",
        graph="reward.onnx",
        inputs={
            "picture": StageInput(stage="picture", output="features"),
            "ids": PromptInput(tokenizer="text", field="ids"),
            "mask": PromptInput(tokenizer="text", field="mask"),
        },
        outputs=["reward"],
        max_batch=16,
    )
    preference = Dimension(
        name="preference",
        title="Preference",
        description="How much people prefer this to other pictures of the same prompt; 0 is the mean of the authors' "
        "data, 1 its standard deviation. Negative values are usual.",
        stage="reward",
        output="reward",
        scope="within_prompt",
        needs_prompt=True,
        tolerance=1e-3,
    )
    return Exportable(
        card=CARD,
        description="BLIP, trained on 137 thousand comparisons by experts of pictures of one prompt.",
        stages=(picture, reward),
        modules={"picture": network.picture, "reward": network.reward},
        dimensions=(preference,),
        licence=Licence(code="Apache-2.0", weights="Apache-2.0, the published ones", data="not in the bundle"),
        source=f"checkpoint {checkpoint.name} in the layout of THUDM/ImageReward",
        tokenizers={"text": Tokenizer(file=_TOKENIZER_FILE, max_length=min(LENGTH, shape.context), pad_id=0)},
        files={_TOKENIZER_FILE: text.content},
    )


FAMILY = Family(CARD, load)
