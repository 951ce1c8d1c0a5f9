"""PickScore: which of several pictures of one prompt people would pick (Kirstain et al., NeurIPS 2023)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.clip.folder import Activation, open_clip_folder
from critiq_exporters.families.clip.heads import Cosine
from critiq_exporters.families.clip.options import ACTIVATION, TOKENIZER
from critiq_exporters.families.clip.stages import match_parts
from critiq_server.bundles.manifest import Dimension, Licence, ResizeView

CARD = Card(
    family="pickscore",
    title="PickScore",
    judges="which picture of a prompt people prefer",
    raw_range="-100 to 100; about 16 to 26 in practice",
    direction="higher is better",
    scope="within a prompt; a softmax over its pictures gives the chance of each to be picked",
    paper="Kirstain et al., Pick-a-Pic, NeurIPS 2023",
    code_licence="Apache-2.0, our own",
    weights="yuvalkirstain/PickScore_v1 (MIT); tokenizer of laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    memory="3.9 GB of weights (986 M parameters)",
)


def load(
    checkpoint: Path,
    tokenizer: Annotated[Path | None, Doc(TOKENIZER)] = None,
    activation: Annotated[Activation, Doc(ACTIVATION)] = "config",
) -> Exportable:
    """PickScore from its CLIP checkpoint: the cosine of picture and prompt, times CLIP's own factor (NeurIPS 2023).

    Raises:
        CheckpointError: the checkpoint or its tokenizer is not a CLIP's.
    """
    folder = open_clip_folder(checkpoint, tokenizer=tokenizer, activation=activation)
    scale = folder.network.scale
    side = folder.network.image.side
    # As transformers' processor of the time cuts the middle, which the authors use.
    parts = match_parts(folder, Cosine(scale), ResizeView(height=side, width=side, fit="crop"))
    preference = Dimension(
        name="preference",
        title="Preference",
        description=f"How likely people are to pick this among pictures of the same prompt: {scale:.4g} x the cosine "
        "of the embeddings. Compares within a prompt; a softmax over its pictures gives probabilities.",
        stage="match",
        output="score",
        minimum=-round(scale + 5e-4, 3),
        maximum=round(scale + 5e-4, 3),
        scope="within_prompt",
        needs_prompt=True,
        tolerance=1e-5 * max(scale, 1.0),
    )
    return Exportable(
        card=CARD,
        description="A CLIP trained on half a million choices that people made between two pictures of their prompt.",
        stages=parts.stages,
        modules=parts.modules,
        dimensions=(preference,),
        licence=Licence(code="Apache-2.0", weights="MIT, the published ones", data="not in the bundle"),
        source=f"checkpoint {checkpoint.name} in the layout of yuvalkirstain/PickScore_v1",
        options={"activation": activation},
        tokenizers=parts.tokenizers,
        files=parts.files,
    )


FAMILY = Family(CARD, load)
