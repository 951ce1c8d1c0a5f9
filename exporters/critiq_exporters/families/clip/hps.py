"""Human Preference Score v2 and v2.1: a CLIP tuned on ranked pictures of one prompt (Wu et al., 2023)."""

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

_FILES = ("HPS_v2.1_compressed.safetensors", "HPS_v2.1_compressed.pt")

CARD = Card(
    family="hpsv2",
    title="HPS v2.1",
    judges="which picture of a prompt people prefer",
    raw_range="-1 to 1, a cosine; about 0.20 to 0.35 in practice",
    direction="higher is better",
    scope="within a prompt",
    paper="Wu et al., Human Preference Score v2, 2023",
    code_licence="Apache-2.0, our own",
    weights="xswu/HPSv2, HPS_v2.1_compressed.pt (Apache-2.0); tokenizer of laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    memory="3.9 GB of weights (986 M parameters)",
)


def load(
    checkpoint: Path,
    tokenizer: Annotated[Path | None, Doc(TOKENIZER)] = None,
    activation: Annotated[Activation, Doc(ACTIVATION)] = "gelu",
) -> Exportable:
    """HPS v2 or v2.1 from its OpenCLIP checkpoint: the cosine of picture and prompt (Wu et al., 2023).

    Raises:
        CheckpointError: the checkpoint or its tokenizer is not a CLIP's.
    """
    folder = open_clip_folder(checkpoint, tokenizer=tokenizer, activation=activation, straighten=True, preferred=_FILES)
    side = folder.network.image.side
    # The authors keep the whole picture: its longer side fits, black borders fill the rest.
    parts = match_parts(folder, Cosine(1.0), ResizeView(height=side, width=side, fit="pad_black"))
    preference = Dimension(
        name="preference",
        title="Preference",
        description="How much people prefer this to other pictures of the same prompt: a cosine, often told x 100.",
        stage="match",
        output="score",
        minimum=-1.0,
        maximum=1.0,
        scope="within_prompt",
        needs_prompt=True,
        tolerance=1e-5,
    )
    return Exportable(
        card=CARD,
        description="A CLIP ViT-H/14 tuned on 800 thousand choices between generated pictures of one prompt.",
        stages=parts.stages,
        modules=parts.modules,
        dimensions=(preference,),
        licence=Licence(code="Apache-2.0", weights="Apache-2.0, the published ones", data="not in the bundle"),
        source=f"checkpoint {checkpoint.name} in the layout of xswu/HPSv2",
        options={"activation": activation},
        tokenizers=parts.tokenizers,
        files=parts.files,
    )


FAMILY = Family(CARD, load)
