"""MA-AGIQA as a model to serve: MANIQA's tower, two questions to mPLUG-Owl2, and the fusion of the three."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from torch import nn
from typing_extensions import Doc

from critiq_exporters.core.checkpoints import read_state
from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.core.lmm_backbone import ask_lmm
from critiq_exporters.families.ma_agiqa.checkpoint import build
from critiq_exporters.families.maniqa import checkpoint as maniqa
from critiq_server.bundles.lmm import FloatFormat, OnMiss
from critiq_server.bundles.manifest import (
    Calibration,
    Dimension,
    Fallback,
    ImageInput,
    Licence,
    ResizeView,
    Stage,
    StageInput,
)
from critiq_server.runtime.lmm.base import FEATURE, lmm_stage
from critiq_server.runtime.lmm.instructions import QUESTIONS, ask, find_instructions

CARD = Card(
    family="ma-agiqa",
    title="MA-AGIQA",
    judges="visual quality",
    raw_range="that of the opinions it was trained on, raw: about 0 to 5 for AGIQA-3K",
    direction="higher is better",
    scope="absolute, within the data set that the checkpoint was trained on",
    paper="Wang et al., MA-AGIQA, ACM MM 2024",
    code_licence="Apache-2.0, our own",
    weights="wangpuyi/MA-AGIQA releases (AGIQA-3K); check their licence, the data set's, and Llama 2's for mPLUG-Owl2",
    memory="510 MB of weights; mPLUG-Owl2 itself 16 GB in float16, unless its features are stored",
)
_ANSWERS = ("semantic", "coherence")


def load(
    checkpoint: Path,
    lmm: Annotated[Path | None, Doc("Folder of mPLUG-Owl2 (MAGAer13/mplug-owl2-llama2-7b), as safetensors.")] = None,
    lmm_name: Annotated[
        str, Doc("What that LMM is called: in lmm.folders of the settings, and in feature stores.")
    ] = "MAGAer13/mplug-owl2-llama2-7b",
    lmm_revision: Annotated[str, Doc("Its fingerprint, where its folder is not at hand.")] = "",
    lmm_dtype: Annotated[FloatFormat, Doc("Number format that it computes in; the authors': float16.")] = "float16",
    record_features: Annotated[
        bool, Doc("Load the LMM and put its own features into the golden records; servers then check theirs.")
    ] = False,
    on_miss: Annotated[OnMiss, Doc("What servers do with features that are not stored.")] = "compute",
    fallback: Annotated[
        Path | None, Doc("MANIQA checkpoint that answers, flagged as degraded, where features are missing.")
    ] = None,
) -> Exportable:
    """MA-AGIQA from a checkpoint in the authors' layout: visual quality of AI-generated pictures (ACM MM 2024).

    Raises:
        CheckpointError: the file is not an MA-AGIQA checkpoint.
        ValueError: the LMM is not named, or does not fit the fusion.
    """
    networks = build(read_state(checkpoint))
    asked = ask_lmm(
        "mplug-owl2",
        networks.fusion.semantic.in_features,
        folder=lmm,
        name=lmm_name,
        revision=lmm_revision,
        load=record_features,
        dtype=lmm_dtype,
    )
    questions = find_instructions(QUESTIONS["mplug-owl2"])
    answers = [
        lmm_stage(name, ask(asked.backbone, question), on_miss=on_miss, max_batch=8)
        for name, question in zip(_ANSWERS, questions, strict=True)
    ]
    tower = _tower("tower", networks.votes.shape.image, "votes")
    fusion = Stage(
        name="fusion",
        graph="fusion.onnx",
        inputs={
            "votes": StageInput(stage="tower", output="votes"),
            **{name: StageInput(stage=name, output=FEATURE) for name in _ANSWERS},
        },
        outputs=["quality"],
        max_batch=64,
    )
    stages = [tower, *answers, fusion]
    modules: dict[str, nn.Module] = {"tower": networks.votes, "fusion": networks.fusion}
    instead = None
    if fallback is not None:
        stage, module = _fallback(fallback)
        stages.append(stage)
        modules[stage.name] = module
        instead = Fallback(
            stage=stage.name,
            output="quality",
            calibration=Calibration(raw=[0.0, 1.0], calibrated=[0.0, 1.0], method="trained on opinions scaled to 0..1"),
        )
    return Exportable(
        card=CARD,
        description="Weighted patches of a picture and two answers of a large multimodal model, mixed by a gate.",
        stages=tuple(stages),
        modules=modules,
        dimensions=(
            Dimension(
                name="visual_quality",
                title="Visual quality",
                description="How good the picture looks, as people in the checkpoint's data set rated it.",
                stage="fusion",
                output="quality",
                fallback=instead,
            ),
        ),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=f"checkpoint {checkpoint.name} in the layout of wangpuyi/MA-AGIQA; features of {lmm_name}, fingerprint "
        f"{asked.backbone.revision[:12]}",
        options={
            "lmm_name": lmm_name,
            "lmm_revision": asked.backbone.revision,
            "lmm_dtype": lmm_dtype,
            "on_miss": on_miss,
        },
        features=asked.features,
    )


def _fallback(checkpoint: Path) -> tuple[Stage, nn.Module]:
    model = maniqa.build(read_state(checkpoint), scale=0.8)
    return _tower("without_lmm", model.shape.image, "quality"), model


def _tower(name: str, side: int, output: str) -> Stage:
    view = ResizeView(height=side, width=side, filter="opencv_cubic")
    return Stage(
        name=name, graph=f"{name}.onnx", inputs={"image": ImageInput(view=view)}, outputs=[output], max_batch=8
    )


FAMILY = Family(CARD, load)
