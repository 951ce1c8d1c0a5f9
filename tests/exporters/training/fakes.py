"""A small data directory with the layout of the real one: drawn pictures and an untrained MobileNetV2."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from critiq_exporters.training.alignment.mobilenet import MobileNetV2
from critiq_exporters.training.builtin import WEIGHTS
from critiq_exporters.training.degradations import degrade
from critiq_exporters.training.golden import PROMPTS, drawings
from critiq_exporters.training.sources import HELD_OUT, TRAINING


def make_data(folder: Path, per_population: int = 8) -> Path:
    """Writes the sets that the quality side reads; early generations are drawn ones, spoilt."""
    for number, (population, role) in enumerate({**TRAINING, **HELD_OUT}.items()):
        (folder / population / "images").mkdir(parents=True)
        rows = []
        for index in range(per_population):
            seed = 100 * number + index
            picture = drawings(seed)[(1, 3, 5)[index % 3]]
            picture = np.roll(picture, 37 * index, 1)
            if role == "early":
                picture = degrade(picture, "overguided", 4, np.random.default_rng(seed))
            file = f"images/{index}.jpg"
            Image.fromarray(picture).save(folder / population / file, quality=92)
            rows.append({"file": file, "prompt": f"{PROMPTS[index % 3]} {index}"})
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / population / "meta.jsonl").write_text(lines, "utf-8")
    (folder / WEIGHTS).parent.mkdir()
    _save_untrained_network(folder / WEIGHTS)
    return folder


def _save_untrained_network(path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    layers = [item for item in MobileNetV2().modules() if isinstance(item, nn.Conv2d | nn.Linear)]
    for index, layer in enumerate(layers):
        shape = tuple(layer.weight.shape)
        values = rng.normal(0, (2 / np.prod(shape[1:])) ** 0.5, shape).astype(np.float16)
        if isinstance(layer, nn.Linear):
            values = values.reshape(shape[0], 1, 1, shape[1])
        else:
            values = values.transpose(1, 2, 3, 0) if layer.groups > 1 else values.transpose(0, 2, 3, 1)
        arrays[f"l{index:02d}_w"] = values
        arrays[f"l{index:02d}_b"] = np.zeros(shape[0], np.float32)
    np.savez(path, **arrays)
