"""A small data directory of drawn pictures, in the layout of the shared one, so that the recipe runs anywhere."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from critiq_exporters.training.alignment import data
from critiq_exporters.training.alignment.mobilenet import CLASSES, MobileNetV2

COLOURS = {"red": (220, 40, 40), "blue": (40, 60, 220), "green": (40, 180, 60), "yellow": (230, 210, 50)}
SHAPES = ("ball", "box", "kite")


def draw(colour: str, shape: str, size: tuple[int, int] = (96, 64)) -> Image.Image:
    """One coloured shape on grey."""
    image = Image.new("RGB", size, (128, 128, 128))
    pen = ImageDraw.Draw(image)
    width, height = size
    box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    if shape == "ball":
        pen.ellipse(box, fill=COLOURS[colour])
    elif shape == "box":
        pen.rectangle(box, fill=COLOURS[colour])
    else:
        pen.polygon([(box[0], box[3]), (box[2], box[3]), ((box[0] + box[2]) // 2, box[1])], fill=COLOURS[colour])
    return image


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Threads of a small network wait for one another, and sums must come out the same every time."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def drawn_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with 60 flickr8k-like pictures and a few of every other set; MobileNetV2 has random weights."""
    root = tmp_path_factory.mktemp("data")
    kinds = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    captioned = [
        {"captions": [f"a {c} {s} on the table", f"there is a {c} {s}", f"two people look at a {c} {s}"]}
        for c, s in kinds
    ]
    _write_set(
        root / "flickr8k",
        kinds * 5,
        [captioned[i % 12] | {"split": "dev" if i % 6 == 5 else "train"} for i in range(60)],
    )
    _write_set(root / "coco_mini", kinds, captioned)
    _write_set(root / "caltech101", kinds, [{"label": shape} for _, shape in kinds])
    _write_set(root / "drawbench_sd", kinds, [{"prompt": f"A {c} coloured {s}."} for c, s in kinds])
    for name in ("gpt4o_jamez", "nanobanana_picotrex"):
        _write_set(root / name, kinds * 3, [{"prompt": "Make it blue.", "needs_reference": True}] * 36)
    _write_texts(root)
    _write_weights(root / "weights")
    return root


@pytest.fixture(scope="session")
def prompt_pool(drawn_data: Path) -> list[str]:
    """The prompts of the drawn data directory."""
    return data.prompts(drawn_data)


def _write_set(folder: Path, kinds: list[tuple[str, str]], lines: list[dict[str, object]]) -> None:
    (folder / "images").mkdir(parents=True)
    with (folder / "meta.jsonl").open("w", encoding="utf-8") as meta:
        for index, ((colour, shape), line) in enumerate(zip(kinds, lines, strict=True)):
            draw(colour, shape, (90 + index, 64)).save(folder / "images" / f"{index}.png")
            meta.write(json.dumps(line | {"file": f"images/{index}.png"}) + "\n")


def _write_texts(root: Path) -> None:
    texts, ratings = root / "texts", root / "mos"
    texts.mkdir()
    ratings.mkdir()
    (texts / "parti_prompts.tsv").write_text('Prompt\tCategory\na "big" red box\tAbstract\na castle\tPlaces\n')
    (texts / "pickapic_train_prompts.txt").write_text("\n".join(f"a {c} castle by the sea" for c in COLOURS) + "\n")
    (texts / "pickapic_test_prompts.txt").write_text("a fox in snow\n")
    (texts / "geneval_metadata.jsonl").write_text('{"prompt": "a photo of a bench"}\n')
    for name in ("agiqa3k_data.csv", "aigiqa20k_info_train.csv"):
        (ratings / name).write_text('name,prompt,mos\n0.png,"a girl, smiling",3.2\n')
    (ratings / "aigciqa2023plus_test.json").write_text('[{"prompt": "a corgi"}]')


def _write_weights(folder: Path) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    layers = [m for m in MobileNetV2().modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for index, layer in enumerate(layers):
        weight = rng.normal(0, (2.0 / np.prod(layer.weight.shape[1:])) ** 0.5, layer.weight.shape).astype(np.float16)
        if isinstance(layer, nn.Conv2d):
            weight = weight.transpose(1, 2, 3, 0) if layer.groups > 1 else weight.transpose(0, 2, 3, 1)
        arrays[f"l{index:02d}_w"] = weight
        arrays[f"l{index:02d}_b"] = np.zeros(layer.weight.shape[0], np.float32)
    np.savez(folder / "mobilenet_v2_imagenet_dequant.npz", **arrays)
    names = ["background", *SHAPES, *(f"thing {index}, sort {index}" for index in range(CLASSES - 4))]
    (folder / "imagenet_labels.txt").write_text("\n".join(names) + "\n")
