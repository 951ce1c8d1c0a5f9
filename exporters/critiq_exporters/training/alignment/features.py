"""What the frozen parts of the network say about every picture and text, computed once and kept on disk.

The early layers of both towers stay as they were pretrained, so training reads their outputs from these files and
spends its time on what changes. Every file is written under a temporary name and then renamed, so that a broken run
resumes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tqdm import tqdm

from critiq_exporters.training.alignment.data import Picture, pixels
from critiq_exporters.training.alignment.mobilenet import CLASSES, STEM_CHANNELS, STEM_SIDE, MobileNetV2
from critiq_exporters.training.alignment.text import TextTower, encode, run_tower

VARIANTS = 4
"""Forms of a training picture: whole, whole mirrored, a random part, another random part mirrored."""


@dataclass(frozen=True)
class ImageFeatures:
    """``stem``: float16 ``[pictures, variants, 96, 14, 14]``; ``logits``: float16 ``[pictures, variants, 1001]``."""

    stem: NDArray[np.float16]
    logits: NDArray[np.float16]


@dataclass(frozen=True)
class TextFeatures:
    """Features of the frozen layers, text after text, and the sentence embeddings of the whole pretrained tower.

    ``tokens``: float16 ``[all tokens, width]``; ``offsets``: int64 ``[texts + 1]``; ``sentences``: float32 ``[texts,
    width]``.
    """

    tokens: NDArray[np.float16]
    offsets: NDArray[np.int64]
    sentences: NDArray[np.float32]

    def padded(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Features float32 ``[batch, length, width]`` and mask int64 ``[batch, length]`` of the texts ``rows``."""
        lengths = [int(self.offsets[row + 1] - self.offsets[row]) for row in rows]
        features = np.zeros((len(lengths), max(lengths), self.tokens.shape[1]), np.float32)
        mask = np.zeros(features.shape[:2], np.int64)
        for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
            features[place, :length] = self.tokens[self.offsets[row] : self.offsets[row + 1]]
            mask[place, :length] = 1
        return torch.from_numpy(features), torch.from_numpy(mask)


@torch.inference_mode()
def image_features(
    pictures: Sequence[Picture], network: MobileNetV2, path: Path, *, variants: int, seed: int
) -> ImageFeatures:
    """Reads ``path`` (a prefix), or computes and writes it."""
    files = (path.with_suffix(".stem.npy"), path.with_suffix(".logits.npy"))
    shape = (len(pictures), variants)
    if not all(file.exists() and np.load(file, mmap_mode="r").shape[:2] == shape for file in files):
        partial = [file.with_suffix(".partial") for file in files]
        stem = np.lib.format.open_memmap(partial[0], "w+", np.float16, (*shape, STEM_CHANNELS, STEM_SIDE, STEM_SIDE))
        logits = np.lib.format.open_memmap(partial[1], "w+", np.float16, (*shape, CLASSES))
        for row, picture in enumerate(tqdm(pictures, desc=f"pictures {path.name}")):
            batch = torch.from_numpy(_variants(picture, variants, np.random.default_rng((seed, row))))
            features = network.pixels_to_stem(batch)
            stem[row] = features.numpy()
            logits[row] = network.classifier(network.tail(features).mean((2, 3))).numpy()
        stem.flush()
        logits.flush()
        for source, target in zip(partial, files, strict=True):
            os.replace(source, target)
    return ImageFeatures(*(np.load(file, mmap_mode="r") for file in files))


def text_features(
    texts: Sequence[str], tokenizer: Tokenizer, tower: TextTower, path: Path, *, frozen: int
) -> TextFeatures:
    """Reads ``path`` (a prefix), or computes and writes it; ``frozen`` layers are run for the token features."""
    files = [path.with_suffix(f".{part}.npy") for part in ("tokens", "offsets", "sentences")]
    if not all(file.exists() for file in files):
        ids = encode(tokenizer, texts)
        offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int64)
        tokens = np.zeros((int(offsets[-1]), tower.shape.width), np.float16)
        sentences = np.zeros((len(ids), tower.shape.width), np.float32)
        progress = tqdm(run_tower(tower, ids, frozen), total=len(ids), desc=f"texts {path.name}", mininterval=5)
        for row, features, sentence in progress:
            tokens[offsets[row] : offsets[row + 1]] = features
            sentences[row] = sentence
        arrays: list[NDArray[Any]] = [tokens, offsets, sentences]
        for file, array in zip(files, arrays, strict=True):
            with file.with_suffix(".partial").open("wb") as stream:
                np.save(stream, array)
            os.replace(file.with_suffix(".partial"), file)
    return TextFeatures(*(np.load(file) for file in files))


def _variants(picture: Picture, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The first ``count`` forms of a picture, ``[count, 224, 224, 3]``; odd ones are mirrored, later ones random
    parts.
    """
    forms = [pixels(picture, rng if index >= 2 else None, flip=index % 2 == 1) for index in range(count)]
    return np.stack(forms)
