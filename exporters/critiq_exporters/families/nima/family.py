"""NIMA as a model to serve: one stage, the mean and the spread of the predicted ratings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from typing_extensions import Doc

from critiq_exporters.core.checkpoints import read_state
from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.nima.checkpoint import build, layout_of
from critiq_exporters.families.nima.network import SIDE
from critiq_server.bundles.manifest import (
    Calibration,
    CropsView,
    Dimension,
    ImageInput,
    Licence,
    ResizeView,
    Stage,
    View,
)

Preparation = Literal["layout", "squeezed", "middle"]
Normalisation = Literal["layout", "imagenet", "none"]

CARD = Card(
    family="nima",
    title="NIMA",
    judges="aesthetics (AVA checkpoints) or technical quality (TID2013): mean and spread of ratings",
    raw_range="1 to 10",
    direction="higher is better",
    scope="absolute, within the data set that the checkpoint was trained on",
    paper="Talebi and Milanfar, IEEE TIP 2018",
    code_licence="Apache-2.0, our own",
    weights="yunxiaoshi/Neural-IMage-Assessment (VGG16, MIT), truskovskiyk/nima.pytorch (MobileNetV2, MIT)",
    memory="VGG16 60 MB of weights (15 M parameters), MobileNetV2 9 MB (2.2 M); on a CPU 0.1 GB a picture in the batch",
)


def load(
    checkpoint: Path,
    preparation: Annotated[
        Preparation,
        Doc(
            "squeezed: the whole picture at 224 x 224; middle: its middle after the shorter side became 256; "
            "layout: as the layout's code does (middle for VGG16, squeezed for MobileNetV2)."
        ),
    ] = "layout",
    normalisation: Annotated[
        Normalisation,
        Doc("Of the pixels: by ImageNet's mean and deviation, or none (0..1); layout: none for VGG16, else imagenet."),
    ] = "layout",
) -> Exportable:
    """NIMA from a public PyTorch checkpoint (VGG16 or MobileNetV2): people's ratings of pictures (Talebi et al., 2018).

    Raises:
        CheckpointError: the file is not a NIMA checkpoint in one of the layouts that are read.
    """
    state = read_state(checkpoint)
    layout = layout_of(state)
    middle = layout == "vgg16" if preparation == "layout" else preparation == "middle"
    imagenet = layout != "vgg16" if normalisation == "layout" else normalisation == "imagenet"
    stage = Stage(
        name="network",
        graph="network.onnx",
        inputs={"image": ImageInput(view=view(middle))},
        outputs=["mean_rating", "rating_spread"],
        max_batch=16,
    )
    return Exportable(
        card=CARD,
        description="Predicted distribution of people's ratings from 1 to 10: its mean and its standard deviation.",
        stages=(stage,),
        modules={"network": build(state, imagenet)},
        dimensions=(_mean(), _spread()),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=f"checkpoint {checkpoint.name} in the layout {layout}",
        options={"preparation": preparation, "normalisation": normalisation},
    )


def view(middle: bool) -> View:
    """What the network sees of a picture; Pillow's bilinear filter, as the public code."""
    if not middle:
        return ResizeView(height=SIDE, width=SIDE, filter="bilinear")
    return CropsView(height=SIDE, width=SIDE, rows=1, columns=1, shorter_min=256, shorter_max=256, filter="bilinear")


def _mean() -> Dimension:
    return Dimension(
        name="aesthetics",
        title="Mean rating (NIMA)",
        description="The mean of the ratings that people would give, from 1 to 10, as in the checkpoint's data set.",
        stage="network",
        output="mean_rating",
        minimum=1.0,
        maximum=10.0,
        calibration=Calibration(
            raw=[1.0, 10.0], calibrated=[0.0, 1.0], method="the scale of the ratings, 1 to 10, stretched to 0..1"
        ),
    )


def _spread() -> Dimension:
    return Dimension(
        name="disagreement",
        title="Spread of the ratings (NIMA)",
        description="Standard deviation of the ratings that people would give: how far they would disagree.",
        stage="network",
        output="rating_spread",
        minimum=0.0,
        maximum=4.5,
        direction="lower_is_better",
    )


FAMILY = Family(CARD, load)
