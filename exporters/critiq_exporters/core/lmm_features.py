"""Features of LMM stages for the gates and the golden records: drawn at random, or the LMM's own."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from critiq_exporters.core.pictures import Pixels
from critiq_server.bundles.lmm import Lmm
from critiq_server.bundles.manifest import ImageInput, Stage
from critiq_server.images.views import apply_view
from critiq_server.runtime.lmm.base import Extractor, Instruction, rounded

FeatureSource = Callable[[Stage, Sequence[Pixels], Sequence[str]], NDArray[np.float32]]
"""Gives the features of one LMM stage, float32 ``[pictures, width]``, for pictures and their prompts."""


def drawn_features(stage: Stage, pictures: Sequence[Pixels], prompts: Sequence[str]) -> NDArray[np.float32]:
    """Standard normal numbers, in the format that the store keeps; the same for the same question, picture and prompt.

    They show that graphs compute what torch computes, and nothing about how well the model judges.
    """
    lmm = _lmm(stage)
    rows = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        read = prompt if lmm.reads_prompt else ""
        seed = [zlib.crc32(text) for text in (lmm.instruction.encode(), picture.tobytes(), read.encode())]
        rows.append(np.random.default_rng(seed).standard_normal(lmm.width, np.float32))
    return rounded(np.stack(rows), lmm.stored)


class LmmFeatures:
    """The LMM's own features for the first ``count`` pictures, each computed once; for the others drawn ones.

    The first are the golden records. Asking a large model about all pictures of the gates would take hours on a CPU
    and show nothing more.
    """

    def __init__(self, extractor: Extractor, count: int = 4) -> None:
        self._extractor, self._count = extractor, count
        self._known: dict[tuple[str, str, bytes], NDArray[np.float32]] = {}

    def __call__(self, stage: Stage, pictures: Sequence[Pixels], prompts: Sequence[str]) -> NDArray[np.float32]:
        lmm, source = _lmm(stage), stage.inputs["image"]
        assert isinstance(source, ImageInput)  # noqa: S101 - the manifest's validator saw to it
        rows = []
        for picture, prompt in zip(pictures[: self._count], prompts, strict=False):
            key = (lmm.text, prompt if lmm.reads_prompt else "", picture.tobytes())
            if key not in self._known:
                seen = apply_view(picture, source.view)
                asked = [Instruction(lmm.instruction, lmm.text)]
                self._known[key] = self._extractor.extract([seen], [prompt], asked)[0, 0]
            rows.append(self._known[key])
        if len(pictures) > self._count:
            rows += list(drawn_features(stage, pictures[self._count :], prompts[self._count :]))
        return np.stack(rows)


def golden_features(
    stages: Sequence[Stage], outputs: Mapping[str, Mapping[str, NDArray[np.generic]]]
) -> dict[str, NDArray[np.generic]]:
    """From the outputs of all stages, the features of those that are LMMs, by stage."""
    return {stage.name: outputs[stage.name]["feature"] for stage in stages if stage.lmm is not None}


def _lmm(stage: Stage) -> Lmm:
    if stage.lmm is None:
        raise ValueError(f"stage {stage.name!r} asks no LMM")
    return stage.lmm
