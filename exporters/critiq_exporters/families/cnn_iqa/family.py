"""CNN-IQA as a model to serve: the reader of public checkpoints, one stage, the picture at its own size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from torch import Tensor
from typing_extensions import Doc

from critiq_exporters.core.checkpoints import fill, read_state
from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.families.cnn_iqa.network import CnnIqa
from critiq_server.bundles.manifest import Dimension, ImageInput, Licence, NativeView, Stage

Direction = Literal["higher", "lower"]

VIEW = NativeView(shorter_min=32, longer_max=2048)
"""Smaller pictures than the paper's patches are enlarged to them."""

CARD = Card(
    family="cnn-iqa",
    title="CNN-IQA",
    judges="visual quality",
    raw_range="as the opinions it was trained on (0 to 1 for the public KonIQ-10k checkpoint)",
    direction="higher is better, or as `--better` says",
    scope="absolute, within the data set that the checkpoint was trained on",
    paper="Kang et al., CVPR 2014",
    code_licence="Apache-2.0, our own",
    weights="pyiqa's release (KonIQ-10k), under its non-commercial licence, or trained by you in that layout",
    memory="2.9 MB of weights (0.73 M parameters); on a CPU 0.1 GB for a megapixel",
)

_NAMES = {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in {"conv1": "filters", "fc1": "first", "fc2": "second", "fc3": "score"}.items()
    for kind in ("weight", "bias")
}


def load(
    checkpoint: Path,
    better: Annotated[
        Direction, Doc("Whether higher or lower scores are better; lower for networks trained on difference opinions.")
    ] = "higher",
) -> Exportable:
    """CNN-IQA from a checkpoint in pyiqa's layout: visual quality of whole pictures (after Kang et al., CVPR 2014).

    Raises:
        CheckpointError: the file is not a CNN-IQA checkpoint.
    """
    stage = Stage(
        name="network",
        graph="network.onnx",
        inputs={"image": ImageInput(view=VIEW)},
        outputs=["quality"],
        max_batch=8,
    )
    quality = Dimension(
        name="visual_quality",
        title="Visual quality",
        description="How good the picture looks, as people in the checkpoint's data set rated it.",
        stage="network",
        output="quality",
        direction="higher_is_better" if better == "higher" else "lower_is_better",
    )
    return Exportable(
        card=CARD,
        description="No-reference visual quality: one convolution, its extremes over the picture, a perceptron.",
        stages=(stage,),
        modules={"network": build(read_state(checkpoint))},
        dimensions=(quality,),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=f"checkpoint {checkpoint.name} in the layout of pyiqa's CNNIQA",
        options={"better": better},
    )


def build(state: Mapping[str, Tensor]) -> CnnIqa:
    """The network of a checkpoint, filled, in evaluation mode. Raises ``CheckpointError`` where it is no CNN-IQA."""
    try:
        filters, _, kernel, _ = state["conv1.weight"].shape
        network = CnnIqa(filters, kernel, (len(state["fc1.bias"]), len(state["fc2.bias"])))
    except (KeyError, ValueError, TypeError):
        network = CnnIqa()  # filling lists what does not fit the published sizes
    fill(network, state, _NAMES)
    return network.eval()


FAMILY = Family(CARD, load)
