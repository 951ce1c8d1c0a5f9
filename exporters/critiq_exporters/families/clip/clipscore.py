"""CLIPScore: how well a picture matches a text, without a reference (Hessel et al., EMNLP 2021)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.clip.folder import Activation, open_clip_folder
from critiq_exporters.families.clip.heads import ClippedCosine
from critiq_exporters.families.clip.options import ACTIVATION, TOKENIZER
from critiq_exporters.families.clip.stages import match_parts
from critiq_server.bundles.manifest import Dimension, Licence

WEIGHT = 2.5
"""The paper's w, which spreads the score over about 0..1."""

CARD = Card(
    family="clipscore",
    title="CLIPScore",
    judges="how well picture and prompt match",
    raw_range="0 to 2.5; about 0.4 to 1 in practice",
    direction="higher is better",
    scope="absolute, within one CLIP checkpoint",
    paper="Hessel et al., CLIPScore, EMNLP 2021",
    code_licence="Apache-2.0, our own",
    weights="any CLIP in Hugging Face's or OpenCLIP's layout; the authors': openai/clip-vit-base-patch32 (MIT)",
    memory="605 MB of weights for ViT-B/32 (151 M parameters), 1.7 GB for ViT-L/14 (428 M)",
)


def load(
    checkpoint: Path,
    tokenizer: Annotated[Path | None, Doc(TOKENIZER)] = None,
    activation: Annotated[Activation, Doc(ACTIVATION)] = "config",
    prefix: Annotated[
        str, Doc("Put before every prompt, as the authors do. Empty for the variant without, as torchmetrics has it.")
    ] = "A photo depicts",
) -> Exportable:
    """CLIPScore from a CLIP checkpoint: 2.5 x the cosine of picture and prompt, or 0 (Hessel et al., EMNLP 2021).

    Raises:
        CheckpointError: the checkpoint or its tokenizer is not a CLIP's.
    """
    folder = open_clip_folder(checkpoint, tokenizer=tokenizer, activation=activation, prefix=prefix, straighten=True)
    parts = match_parts(folder, ClippedCosine(WEIGHT))
    alignment = Dimension(
        name="alignment",
        title="Prompt alignment",
        description="How well the picture matches its prompt: 2.5 x the cosine of their CLIP embeddings, at least 0.",
        stage="match",
        output="score",
        minimum=0.0,
        maximum=WEIGHT,
        needs_prompt=True,
    )
    return Exportable(
        card=CARD,
        description="CLIP embeddings of picture and prompt, compared; no fixed calibration, it depends on the CLIP.",
        stages=parts.stages,
        modules=parts.modules,
        dimensions=(alignment,),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=f"CLIP checkpoint {checkpoint.name}",
        options={"activation": activation, "prefix": prefix},
        tokenizers=parts.tokenizers,
        files=parts.files,
    )


FAMILY = Family(CARD, load)
