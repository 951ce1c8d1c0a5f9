"""The questions that model families ask an LMM, by id, and the conversations around them. Words are exact.

A question's words are part of every feature's name: to change one is to start a new set of features, so a changed
question gets a new id.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from critiq_server.bundles.lmm import Backbone, FloatFormat, GridProcessor, Lmm, SquareProcessor
from critiq_server.runtime.lmm.base import Instruction

BackboneName = Literal["qwen3-vl", "mplug-owl2"]

INSTRUCTIONS: dict[str, Instruction] = {
    instruction.id: instruction
    for instruction in (
        # ELIQ's own words are not published (its section 3.3.1 says what each must and must not name): these are ours.
        Instruction(
            "eliq-technical-1",
            "Assess only the technical quality of this image: sharpness, noise, compression artifacts, exposure and "
            "structural distortions. Ignore its aesthetic appeal and its content. "
            "Answer with one word, low or high.",
        ),
        Instruction(
            "eliq-aesthetic-1",
            "Assess only the aesthetic quality of this image: composition, colour harmony, lighting and visual appeal. "
            "Ignore technical flaws and what the image is meant to show. "
            "Answer with one word, low or high.",
        ),
        Instruction(
            "eliq-alignment-1",
            "Assess only how well this image matches its description: the objects, their attributes, counts and "
            'relations. Ignore technical and aesthetic quality. The description is: "{prompt}" '
            "Answer with one word, low or high.",
        ),
        # The authors' words (wangpuyi/MA-AGIQA, getFeature.py).
        Instruction(
            "ma-agiqa-coherence",
            "Evaluate if the image quality is compromised due to violations of coherence.",
        ),
        Instruction(
            "ma-agiqa-semantic",
            "Evaluate the input image to determine if its quality is compromised due to a lack of meaningful semantic "
            "content.",
        ),
    )
}

QUESTIONS: dict[BackboneName, tuple[str, ...]] = {
    "qwen3-vl": ("eliq-technical-1", "eliq-aesthetic-1", "eliq-alignment-1"),
    "mplug-owl2": ("ma-agiqa-semantic", "ma-agiqa-coherence"),
}
"""Ids of the questions that the families ask of each backbone."""

_TEMPLATES: dict[BackboneName, str] = {
    # Qwen3-VL's chat template for one user turn. The picture stands before the words, so that its tokens, the same for
    # every question, need to be computed only once.
    "qwen3-vl": "<|im_start|>user\n<|vision_start|>{image}<|vision_end|>{instruction}<|im_end|>\n"
    "<|im_start|>assistant\n",
    # mPLUG-Owl2's template without system text, as MA-AGIQA uses it; one blank before ASSISTANT, nothing behind.
    "mplug-owl2": "USER: {instruction}\n{image} ASSISTANT:",
}


def find_instructions(ids: Sequence[str]) -> list[Instruction]:
    """The registered instructions called ``ids``. Raises ``ValueError`` for an unknown one, naming the known."""
    if unknown := [name for name in ids if name not in INSTRUCTIONS]:
        raise ValueError(f"there is no instruction {unknown[0]!r}; known are {', '.join(INSTRUCTIONS)}")
    return [INSTRUCTIONS[name] for name in ids]


def standard_backbone(
    name: BackboneName,
    model: str,
    revision: str,
    width: int,
    *,
    dtype: FloatFormat | None = None,
    stored: FloatFormat | None = None,
    **processor: Any,
) -> Backbone:
    """A backbone as its family reads it.

    Qwen3-VL: the last token's hidden state, computed in bfloat16, up to 1,048,576 pixels at their own resolution
    (about 1,024 tokens). mPLUG-Owl2: the mean over all positions, computed in float16, 448 x 448. Kept in float16.

    Args:
        name: the kind of LMM.
        model: hub id, or what the folder is to be called.
        revision: fingerprint of its folder.
        width: of its hidden states.
        dtype: to compute in, instead of the standard.
        stored: to keep features in, instead of float16.
        processor: settings of the picture's processor that differ from the standard.
    """
    grid = name == "qwen3-vl"
    return Backbone(
        backbone=name,
        model=model,
        revision=revision,
        template=_TEMPLATES[name],
        feature="last_token" if grid else "mean",
        width=width,
        dtype=dtype or ("bfloat16" if grid else "float16"),
        stored=stored or "float16",
        processor=GridProcessor(**processor) if grid else SquareProcessor(**processor),
    )


def ask(backbone: Backbone, instruction: Instruction) -> Lmm:
    """``backbone`` asked ``instruction``."""
    return Lmm(**backbone.model_dump(), instruction=instruction.id, text=instruction.text)
