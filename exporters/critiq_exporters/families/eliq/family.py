"""ELIQ as a model to serve: three questions to Qwen3-VL, one scoring module, two dimensions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typing_extensions import Doc

from critiq_exporters.core.checkpoints import read_state
from critiq_exporters.core.exportable import Card, Exportable, Family
from critiq_exporters.core.lmm_backbone import ask_lmm
from critiq_exporters.families.eliq.checkpoint import HEADS, build
from critiq_server.bundles.lmm import FloatFormat, OnMiss
from critiq_server.bundles.manifest import Dimension, Licence, Stage, StageInput
from critiq_server.runtime.lmm.base import FEATURE, lmm_stage
from critiq_server.runtime.lmm.instructions import QUESTIONS, ask, find_instructions

CARD = Card(
    family="eliq",
    title="ELIQ",
    judges="visual quality, alignment",
    raw_range="unbounded; trained by ranking, so only the order means something",
    direction="higher is better",
    scope="absolute",
    paper="Li et al., ELIQ, arXiv 2602.03558",
    code_licence="Apache-2.0, our own, from the paper",
    weights="none published; heads come from `critiq-train`, Qwen3-VL is Apache-2.0",
    memory="about 360 MB of weights at h = 4096; the LMM itself 16 GB and more, unless its features are stored",
)
_STAGES = ("technical", "aesthetic", "alignment")


def load(
    checkpoint: Path,
    lmm: Annotated[Path | None, Doc("Folder of the Qwen3-VL whose features the heads were trained on.")] = None,
    lmm_name: Annotated[
        str, Doc("What that LMM is called: in lmm.folders of the settings, and in feature stores.")
    ] = "Qwen/Qwen3-VL-8B-Instruct",
    lmm_revision: Annotated[str, Doc("Its fingerprint, where its folder is not at hand.")] = "",
    lmm_dtype: Annotated[FloatFormat, Doc("Number format that it computes in.")] = "bfloat16",
    max_pixels: Annotated[int, Doc("Pixels beyond which it sees a smaller picture; 1,024 are one token.")] = 1_048_576,
    record_features: Annotated[
        bool, Doc("Load the LMM and put its own features into the golden records; servers then check theirs.")
    ] = False,
    on_miss: Annotated[OnMiss, Doc("What servers do with features that are not stored.")] = "compute",
    heads: Annotated[int, Doc("Attention heads of the quality query transformer.")] = HEADS,
) -> Exportable:
    """ELIQ's scoring module on Qwen3-VL's features: visual quality, and alignment with the prompt (arXiv 2602.03558).

    Raises:
        CheckpointError: the file is not a scoring module.
        ValueError: the LMM is not named, or does not fit the module.
    """
    scorer = build(read_state(checkpoint), heads)
    width = scorer.fusion.technical_gate.out_features
    asked = ask_lmm(
        "qwen3-vl",
        width,
        folder=lmm,
        name=lmm_name,
        revision=lmm_revision,
        load=record_features,
        dtype=lmm_dtype,
        min_pixels=min(65_536, max_pixels),
        max_pixels=max_pixels,
    )
    questions = find_instructions(QUESTIONS["qwen3-vl"])
    stages = tuple(
        lmm_stage(name, ask(asked.backbone, question), on_miss=on_miss, max_batch=8)
        for name, question in zip(_STAGES, questions, strict=True)
    )
    head = Stage(
        name="scorer",
        graph="scorer.onnx",
        inputs={name: StageInput(stage=name, output=FEATURE) for name in _STAGES},
        outputs=["visual_quality", "prompt_alignment"],
        max_batch=64,
    )
    return Exportable(
        card=CARD,
        description="Gated fusion and quality query transformer on three answers of a large multimodal model.",
        stages=(*stages, head),
        modules={"scorer": scorer},
        dimensions=(
            _dimension("visual_quality", "visual_quality", "Visual quality", "How good the picture looks."),
            _dimension(
                "alignment", "prompt_alignment", "Alignment", "How well the picture shows what its prompt says."
            ),
        ),
        licence=Licence(code="Apache-2.0", weights="as their source says: see provenance", data="not in the bundle"),
        source=f"scoring module {checkpoint.name}; features of {lmm_name}, fingerprint {asked.backbone.revision[:12]}",
        options={
            "lmm_name": lmm_name,
            "lmm_revision": asked.backbone.revision,
            "lmm_dtype": lmm_dtype,
            "max_pixels": max_pixels,
            "on_miss": on_miss,
            "heads": heads,
        },
        features=asked.features,
    )


def _dimension(name: str, output: str, title: str, description: str) -> Dimension:
    # Both read the prompt: the content token holds the alignment embedding (eq. 12).
    return Dimension(
        name=name,
        title=title,
        description=description,
        stage="scorer",
        output=output,
        needs_prompt=True,
        tolerance=1e-3,
    )


FAMILY = Family(CARD, load)
