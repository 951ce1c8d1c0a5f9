"""What raw alignment values mean: where they lie among true and false captions of held-out photographs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from critiq_exporters.training.alignment.data import Picture
from critiq_exporters.training.alignment.features import image_features
from critiq_exporters.training.alignment.mobilenet import MobileNetV2
from critiq_exporters.training.alignment.negatives import hard_negative, other_prompt
from critiq_exporters.training.alignment.network import OPINIONS, AlignmentModel
from critiq_exporters.training.alignment.text import encode, pad
from critiq_server.bundles.manifest import Calibration, Reference

_POINTS = 33


@torch.inference_mode()
def set_references(
    model: AlignmentModel, tokenizer: Tokenizer, references: Sequence[Picture], prompts: Sequence[str],
    backbone: MobileNetV2, cache: Path, seed: int,
) -> None:  # fmt: skip
    """Fills in the reference pictures' features, and the usual spread of a prompt's opinions over them.

    ``references``: ``REFERENCES`` pictures; ``prompts``: texts of the kind that will be asked.
    """
    stem = image_features(references, backbone, cache / "reference", variants=1, seed=seed).stem[:, 0]
    regions, pictures, concepts, _ = model.image.from_stem(torch.from_numpy(stem.astype(np.float32)))
    model.reference_regions.copy_(regions.half())  # as they will be stored
    model.reference_pictures.copy_(pictures.half())
    model.reference_concepts.copy_(concepts.half())
    model.usual_spread.zero_()
    ids = encode(tokenizer, prompts)
    spreads = torch.cat([model.prompt(*pad(ids[i : i + 8]))[3][:, OPINIONS:] * 2.0 for i in range(0, len(ids), 8)])
    model.usual_spread.copy_(spreads.median(0).values)


@torch.inference_mode()
def population(
    model: AlignmentModel,
    tokenizer: Tokenizer,
    pictures: Sequence[Picture],
    backbone: MobileNetV2,
    cache: Path,
    seed: int,
) -> tuple[Calibration, Reference]:
    """Calibration and reference quantiles from each picture's first caption, that caption edited, and another's.

    ``model`` must be in evaluation mode; ``backbone`` gives the frozen stem's features, kept under ``cache``.
    """
    rng = random.Random(seed)
    own = [picture.captions[0] for picture in pictures]
    foreign = [other_prompt(own, index, rng) for index in range(len(own))]
    edits = [hard_negative(caption, rng) for caption in own]
    edited = [other if edit is None else edit.text for edit, other in zip(edits, foreign, strict=True)]
    stem = image_features(pictures, backbone, cache / "validation", variants=1, seed=seed).stem[:, 0]
    right, changed, wrong = (_scores(model, tokenizer, stem, texts) for texts in (own, edited, foreign))
    everything = np.concatenate([right, changed, wrong])
    raw = np.unique(np.quantile(everything, np.linspace(0.0, 1.0, _POINTS)))
    share = (_share_below(right, raw) + _share_below(wrong, raw)) / 2
    calibration = Calibration(
        raw=raw.tolist(),
        calibrated=share.tolist(),
        method="mean of the percentiles among true and among foreign captions",
    )
    quantiles = np.quantile(everything, np.linspace(0.0, 1.0, 101))
    name = "held-out photographs with their own, an edited and a foreign caption"
    return calibration, Reference(population=name, count=len(everything), quantiles=quantiles.tolist())


def _scores(
    model: AlignmentModel, tokenizer: Tokenizer, stem: NDArray[np.float16], texts: Sequence[str]
) -> NDArray[np.float64]:
    ids = encode(tokenizer, texts)
    answers = []
    for start in range(0, len(texts), 64):
        seen = model.image.from_stem(torch.from_numpy(stem[start : start + 64].astype(np.float32)))[:3]
        answers.append(model.align(*seen, *model.prompt(*pad(ids[start : start + 64]))).numpy())
    return np.concatenate(answers).astype(np.float64)


def _share_below(scores: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.searchsorted(np.sort(scores), points, side="right") / len(scores)
