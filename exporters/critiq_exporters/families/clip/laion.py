"""The LAION aesthetics predictor v2: how beautiful people find a picture (Schuhmann, 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from critiq_exporters.core.checkpoints import CheckpointError, fill, fingerprint, read_state
from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.clip.folder import Activation, open_clip_folder
from critiq_exporters.families.clip.heads import PERCEPTRON_NAMES, Aesthetics
from critiq_exporters.families.clip.options import ACTIVATION, TOKENIZER
from critiq_exporters.families.clip.stages import picture_parts
from critiq_server.bundles.manifest import Calibration, Dimension, Licence, Stage, StageInput

CARD = Card(
    family="laion-aesthetics",
    title="LAION aesthetics v2",
    judges="how beautiful a picture is",
    raw_range="about 1 to 10, the scale of the ratings; not bounded",
    direction="higher is better",
    scope="absolute",
    paper="Schuhmann, LAION-Aesthetics, 2022",
    code_licence="Apache-2.0, our own",
    weights="openai/clip-vit-large-patch14 (MIT) and the head sac+logos+ava1-l14-linearMSE.pth (Apache-2.0)",
    memory="1.2 GB of weights (304 M parameters); the text tower is not exported",
)


def load(
    checkpoint: Path,
    head: Annotated[Path | None, Doc("File of the predictor, for instance sac+logos+ava1-l14-linearMSE.pth.")] = None,
    tokenizer: Annotated[Path | None, Doc(TOKENIZER)] = None,
    activation: Annotated[Activation, Doc(ACTIVATION)] = "config",
) -> Exportable:
    """LAION aesthetics v2 from a CLIP checkpoint and the published head: how beautiful a picture is.

    Raises:
        CheckpointError: the checkpoint is not a CLIP, or the head does not fit it.
        ValueError: no head was given.
    """
    if head is None:
        raise ValueError("the predictor is a file of its own: pass --head sac+logos+ava1-l14-linearMSE.pth")
    folder = open_clip_folder(checkpoint, tokenizer=tokenizer, activation=activation)
    parts = picture_parts(folder)
    aesthetics = read_head(head, folder.network.image.embedding)
    stage = Stage(
        name="head",
        graph="head.onnx",
        inputs={"image": StageInput(stage="image", output="features")},
        outputs=["rating"],
        max_batch=64,
        cache=False,
    )
    dimension = Dimension(
        name="aesthetics",
        title="Aesthetics",
        description="How beautiful people would find the picture, on the scale of 1 to 10 of the ratings it learned.",
        stage="head",
        output="rating",
        tolerance=1e-3,
        calibration=Calibration(
            raw=[1.0, 10.0], calibrated=[0.0, 1.0], method="none needed: the scale of the ratings, 1 to 10, as 0 to 1"
        ),
    )
    return Exportable(
        card=CARD,
        description="A linear network on the CLIP embedding of a picture, trained on ratings of pictures from 1 to 10.",
        stages=(*parts.stages, stage),
        modules={**parts.modules, "head": aesthetics},
        dimensions=(dimension,),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=f"CLIP checkpoint {checkpoint.name}, head {head.name} (SHA-256 {fingerprint(head)})",
        options={"activation": activation},
    )


def read_head(file: Path, width: int) -> Aesthetics:
    """The published predictor, for embeddings of ``width`` numbers, in evaluation mode.

    Raises:
        CheckpointError: the file is no such predictor, or is for embeddings of another width.
    """
    state = read_state(file)
    module = Aesthetics(width)
    first = state.get("layers.0.weight")
    if first is not None and first.dim() == 2 and first.shape[1] != width:
        raise CheckpointError(
            f"{file.name} takes embeddings of {first.shape[1]} numbers, the checkpoint gives {width}: the published "
            "head is for CLIP ViT-L/14 with 768"
        )
    fill(module, state, {theirs: f"layers.{ours}" for theirs, ours in PERCEPTRON_NAMES.items()})
    return module.eval()


FAMILY = Family(CARD, load)
