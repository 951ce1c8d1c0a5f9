"""Which pictures and texts the alignment part learns from, and which it is judged on.

Folders are as described in ``../shared/data/README.md``: ``images/`` beside a ``meta.jsonl`` with one line a picture.
Whole sources are kept apart: no AI-generated picture, no ``dreambooth`` picture and no ``flickr8k`` dev picture is
trained on.
"""

from __future__ import annotations

import csv
import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from critiq_server.bundles.manifest import ResizeView
from critiq_server.images.views import apply_view

SIDE = 224
# Stretched, because the largest caption set is only at hand stretched to a square, and so that nothing of the picture
# is lost.
VIEW = ResizeView(height=SIDE, width=SIDE, fit="stretch", filter="bicubic")

Part = Literal["train", "validation", "test"]
_CLASS_TEMPLATES = ("a photo of a {}", "a {}", "a picture of a {}", "a close-up of a {}", "there is a {} here")


@dataclass(frozen=True)
class Picture:
    """A picture and the texts that describe it."""

    path: Path
    captions: tuple[str, ...]
    source: str
    part: Part


def captioned_photographs(data_dir: Path) -> list[Picture]:
    """Photographs: flickr8k (train, dev = validation), coco_mini (halves: train, test), caltech101 by class name
    (train).
    """
    pictures = []
    for line in _meta(data_dir / "flickr8k"):
        part: Part = "validation" if line["split"] == "dev" else "train"
        pictures.append(_picture(data_dir / "flickr8k", line, line["captions"], part))
    for index, line in enumerate(_meta(data_dir / "coco_mini")):
        pictures.append(_picture(data_dir / "coco_mini", line, line["captions"], "test" if index % 2 else "train"))
    for line in _meta(data_dir / "caltech101"):
        name = line["label"].lower().replace("_", " ").removesuffix("s easy")
        captions = [template.format("face" if name == "faces" else name) for template in _CLASS_TEMPLATES]
        pictures.append(_picture(data_dir / "caltech101", line, captions, "train"))
    return pictures


def generated_pictures(data_dir: Path) -> list[Picture]:
    """AI-generated pictures with the prompt each was made from, without those whose prompt edits an unseen picture
    (test).
    """
    return [
        _picture(data_dir / folder, line, [line["prompt"]], "test")
        for folder in ("drawbench_sd", "gpt4o_jamez", "nanobanana_picotrex")
        for line in _meta(data_dir / folder)
        if not line.get("needs_reference", False)
    ]


def reference_pictures(data_dir: Path, count: int, seed: int) -> list[Picture]:
    """Pictures that a prompt's scores are set against: half photographs of the training part, half AI-generated ones.

    The generated ones are those left out of :func:`generated_pictures`, since no usable prompt belongs to them.
    """
    rng = random.Random(seed)
    photographs = [picture for picture in captioned_photographs(data_dir) if picture.part == "train"]
    generated = [
        _picture(data_dir / folder, line, [line["prompt"]], "train")
        for folder in ("gpt4o_jamez", "nanobanana_picotrex")
        for line in _meta(data_dir / folder)
        if line.get("needs_reference", False)
    ]
    half = min(count // 2, len(generated))
    return [*rng.sample(photographs, count - half), *rng.sample(generated, half)]


def prompts(data_dir: Path) -> list[str]:
    """Prompts that people wrote for text-to-image models, without pictures, each once and in a fixed order."""
    found: list[str] = []
    texts, ratings = data_dir / "texts", data_dir / "mos"
    with (texts / "parti_prompts.tsv").open(encoding="utf-8", newline="") as file:
        found += [row["Prompt"] for row in csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)]
    for name in ("pickapic_train_prompts.txt", "pickapic_test_prompts.txt"):
        found += (texts / name).read_text(encoding="utf-8").splitlines()
    with (texts / "geneval_metadata.jsonl").open(encoding="utf-8") as file:
        found += [json.loads(line)["prompt"] for line in file]
    for name in ("agiqa3k_data.csv", "aigiqa20k_info_train.csv"):
        with (ratings / name).open(encoding="utf-8", newline="") as file:
            found += [row["prompt"] for row in csv.DictReader(file)]
    rated = json.loads((ratings / "aigciqa2023plus_test.json").read_text(encoding="utf-8"))
    found += [row["prompt"] for row in rated]
    return sorted({text.strip() for text in found if text.strip()})


def class_names(data_dir: Path) -> list[str]:
    """ImageNet's class names as prompts, in the order of MobileNetV2's logits (number 0, the background, is empty)."""
    lines = (data_dir / "weights" / "imagenet_labels.txt").read_text(encoding="utf-8").splitlines()
    return [""] + [line.split(",")[0].strip() for line in lines[1:]]


def pixels(picture: Picture, rng: np.random.Generator | None = None, flip: bool = False) -> NDArray[np.uint8]:
    """``[224, 224, 3]`` RGB as the server would see it; with ``rng`` a random part, 50 to 100 % of its area."""
    with Image.open(picture.path) as image:
        array = np.asarray(image.convert("RGB"))
    if rng is not None:
        array = _random_part(array, rng)
    view = np.asarray(apply_view(np.ascontiguousarray(array), VIEW))
    return np.ascontiguousarray(view[:, ::-1]) if flip else view


def _random_part(array: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    height, width = array.shape[:2]
    aspect = np.exp(rng.uniform(-0.2, 0.2))
    area = rng.uniform(0.5, 1.0)
    rows = min(height, max(1, round(height * (area * aspect) ** 0.5)))
    columns = min(width, max(1, round(width * (area / aspect) ** 0.5)))
    top, left = rng.integers(0, height - rows + 1), rng.integers(0, width - columns + 1)
    return array[top : top + rows, left : left + columns]


def _meta(folder: Path) -> list[dict[str, Any]]:
    with (folder / "meta.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _picture(folder: Path, line: dict[str, Any], captions: list[str], part: Part) -> Picture:
    cleaned = tuple(" ".join(caption.split()) for caption in captions)
    return Picture(folder / line["file"], cleaned, folder.name, part)
