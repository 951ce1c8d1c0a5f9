"""Which pictures the recipe reads, what role each set has, and the treatment that hides where they come from."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from critiq_exporters.training.degradations import Pixels
from critiq_exporters.training.degradations.pixelwise import encoded

Role = Literal["photograph", "generation", "early"]
"""Photographs; good recent generations; generations of early models, aesthetic negatives as in ELIQ 3.2.3."""

TRAINING: dict[str, Role] = {
    "cid22": "photograph",
    "coco_mini": "photograph",
    "nanobanana_picotrex": "generation",
    "drawbench_sd": "early",
}
HELD_OUT: dict[str, Role] = {
    "kodak": "photograph",
    "clic2025": "photograph",
    "dreambooth": "photograph",
    "gpt4o_jamez": "generation",
}
"""Whole sources that training never reads."""
EARLY_HELD_OUT_SHARE = 0.2
"""Share of the prompts of the early generations whose pictures are held out with the sources above."""


@dataclass(frozen=True)
class Source:
    """One picture file."""

    path: Path
    population: str
    role: Role
    label: str
    """Its prompt or caption, empty where it has none."""


def training_sources(data: Path) -> list[Source]:
    """Every training picture under ``data``, in a fixed order. Raises ``FileNotFoundError`` where a set is missing."""
    return [item for item in _all(data, TRAINING) if not _is_held_out(item)]


def held_out_sources(data: Path) -> list[Source]:
    """Every picture kept for evaluation, in a fixed order. Raises ``FileNotFoundError`` where a set is missing."""
    return _all(data, HELD_OUT) + [item for item in _all(data, TRAINING) if _is_held_out(item)]


def thinned(sources: list[Source], count: int | None) -> list[Source]:
    """At most ``count`` pictures of each population, spread evenly."""
    if count is None:
        return sources
    kept: list[Source] = []
    for population in dict.fromkeys(item.population for item in sources):
        mine = [item for item in sources if item.population == population]
        kept += [mine[int(index)] for index in np.linspace(0, len(mine) - 1, min(count, len(mine)))]
    return kept


def read(source: Source) -> Pixels:
    """The decoded picture."""
    with Image.open(source.path, formats=["JPEG", "PNG", "WEBP"]) as image:
        return np.asarray(image.convert("RGB"))


def harmonised(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The picture at a random size with a random fresh JPEG history.

    Sources differ in size and compression; after this, neither tells them apart. The longer side becomes 304 to 368
    pixels (more where the shorter would fall under 224), which shrinks every picture of every set a little.
    """
    height, width = pixels.shape[:2]
    factor = max(float(rng.uniform(304, 368)) / max(height, width), 224 / min(height, width))
    size = (round(width * factor), round(height * factor))
    resized = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))
    return encoded(resized, "JPEG", quality=int(rng.integers(80, 97)))


def varied(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """The picture at any size from 320 pixels to its own, mirrored or not, with one of several histories.

    For learning to see damage, where a set's usual size must not be the only one seen: the other treatment, for
    comparing sets with one another, is ``harmonised``. Half the pictures are saved anew as JPEG, a quarter as WebP.
    """
    height, width = pixels.shape[:2]
    smallest = max(320 / max(height, width), 224 / min(height, width))
    factor = float(rng.uniform(min(smallest, 1.0), 1.0)) if smallest < 1 else smallest
    image = Image.fromarray(pixels).resize(
        (round(width * factor), round(height * factor)),
        Image.Resampling.LANCZOS if rng.random() < 0.5 else Image.Resampling.BICUBIC,
    )
    mirrored = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else image
    history, quality = rng.random(), int(rng.integers(78, 98))
    if history < 0.75:
        return encoded(np.asarray(mirrored), "JPEG" if history < 0.5 else "WEBP", quality=quality)
    return np.asarray(mirrored)


def _all(data: Path, populations: dict[str, Role]) -> list[Source]:
    found: list[Source] = []
    for population, role in populations.items():
        with (data / population / "meta.jsonl").open(encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                label = str(row.get("prompt") or row.get("caption") or "")
                found.append(Source(data / population / row["file"], population, role, label))
    return sorted(found, key=lambda item: (item.population, item.path.name))


def _is_held_out(source: Source) -> bool:
    bucket = zlib.crc32(source.label.encode()) % 1000
    return source.role == "early" and bucket < 1000 * EARLY_HELD_OUT_SHARE
