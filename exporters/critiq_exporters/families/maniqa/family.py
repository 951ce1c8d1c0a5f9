"""MANIQA as a model to serve: its one stage, what it judges, the pictures as the authors prepare them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from critiq_exporters.core.checkpoints import read_state
from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.maniqa.checkpoint import build
from critiq_server.bundles.manifest import (
    Calibration,
    Dimension,
    FiveCropsView,
    ImageInput,
    Licence,
    ResizeView,
    Stage,
    View,
)

Evaluation = Literal["whole", "five_crops"]

CARD = Card(
    family="maniqa",
    title="MANIQA",
    judges="visual quality",
    raw_range="0 and up; about 0 to 1, the opinions it was trained on were scaled so",
    direction="higher is better",
    scope="absolute, within the data set that the checkpoint was trained on",
    paper="Yang et al., MANIQA, CVPRW 2022",
    code_licence="Apache-2.0, our own",
    weights="IIGROUP/MANIQA releases (KonIQ-10k, KADID-10k, PIPAL); check their licence and their data sets'",
    memory="458 MB of weights (115 M parameters); on a CPU 0.9 GB, and 0.13 GB a picture in the batch",
)


def load(
    checkpoint: Path,
    scale: Annotated[
        float, Doc("Of a Swin layer's contribution. 0.8: KonIQ-10k and KADID-10k checkpoints; 0.13: PIPAL's.")
    ] = 0.8,
    evaluation: Annotated[
        Evaluation,
        Doc(
            "whole: the picture squeezed to the network's size with OpenCV's cubic filter, as the authors evaluate "
            "KonIQ-10k; five_crops: the mean over corners and middle at its own resolution, as they evaluate PIPAL."
        ),
    ] = "whole",
) -> Exportable:
    """MANIQA from a checkpoint in the authors' layout: visual quality of pictures (Yang et al., CVPRW 2022).

    Raises:
        CheckpointError: the file is not a MANIQA checkpoint.
    """
    model = build(read_state(checkpoint), scale)
    side = model.shape.image
    stage = Stage(
        name="tower",
        graph="tower.onnx",
        inputs={"image": ImageInput(view=_view(evaluation, side))},
        outputs=["quality"],
        max_batch=8 if evaluation == "whole" else 2,
    )
    quality = Dimension(
        name="visual_quality",
        title="Visual quality",
        description="How good the picture looks, as people in the checkpoint's data set rated it.",
        stage="tower",
        output="quality",
        minimum=0.0,
        calibration=Calibration(
            raw=[0.0, 1.0], calibrated=[0.0, 1.0], method="none needed: trained on opinions scaled to 0..1"
        ),
    )
    return Exportable(
        card=CARD,
        description="No-reference visual quality: ViT features, attention over channels and windows, weighted patches.",
        stages=(stage,),
        modules={"tower": model},
        dimensions=(quality,),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=f"checkpoint {checkpoint.name} in the layout of IIGROUP/MANIQA",
        options={"scale": scale, "evaluation": evaluation},
    )


def _view(evaluation: Evaluation, side: int) -> View:
    if evaluation == "whole":
        return ResizeView(height=side, width=side, filter="opencv_cubic")
    # Pictures of any size keep their resolution; only those that the window does not fit into are enlarged.
    return FiveCropsView(height=side, width=side, shorter_min=side, shorter_max=1 << 16, filter="opencv_cubic")


FAMILY = Family(CARD, load)
