"""Small human-rated datasets in the layouts that the published ones have, with pictures that a test server can rank."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
from PIL import Image
from scipy.io import savemat

COUNT = 12
PROMPTS = ['a red house, "old"', "a cat; asleep", "ein Hund läuft", "一只猫"]


@dataclass(frozen=True)
class Written:
    """A dataset on disk."""

    name: str
    labels: Path
    images: Path
    rating: str
    """A rated dimension that rises with the brightness of the pictures, perfectly."""
    pictures: int = COUNT


def write_dataset(name: str, folder: Path) -> Written:
    """Writes the dataset ``name`` (see ``LAYOUTS``): twelve grey pictures, brighter ones rated higher."""
    images, labels = folder / "images", folder / "labels"
    for place in (images, labels):
        place.mkdir(parents=True)
    return LAYOUTS[name](labels, images)


def _agiqa_3k(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"sd1.5_{('normal', 'lowstep')[i % 2]}_{i:03}.jpg" for i in range(COUNT)])
    header = ["name", "prompt", "adj1", "adj2", "style", "mos_quality", "std_quality", "mos_align", "std_align"]
    rows = [
        [name, _prompt(i), "", "", "", _rating(i, 0, 5), 0.4, _rating(i, 0, 5), 0.5] for i, name in enumerate(names)
    ]
    return Written("agiqa-3k", _csv(labels / "data.csv", header, rows), images, "quality")


def _agiqa_1k(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"{i}.png" for i in range(COUNT)])
    path = _excel(
        labels / "AIGC_MOS_Zscore.xlsx",
        ["Image", "Prompt", "MOS"],
        [[name, _prompt(i), _rating(i, 0, 5)] for i, name in enumerate(names)],
    )
    return Written("agiqa-1k", path, images, "mos")


def _aigiqa_20k(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"{('DALLE2', 'SDXL')[i % 2]}_{i:04}.png" for i in range(COUNT)])
    rows = [[name, _prompt(i), _rating(i, 0, 5)] for i, name in enumerate(names)]
    header = ["name", "prompt", "mos"]
    _csv(labels / "info_train.csv", header, rows[:6], encoding="utf-8-sig")
    _excel(labels / "info_val.xlsx", header, rows[6:8])
    _csv(labels / "info_test.csv", header, rows[8:])
    return Written("aigiqa-20k", labels, images, "mos")


def _aigciqa2023(labels: Path, images: Path) -> Written:
    """Two generators, two prompts, four pictures of each."""
    count = 16
    _draw(images, [f"{i}.png" for i in range(count)], step=14)
    place = labels / "DATA" / "MOS"
    place.mkdir(parents=True)
    for number in (1, 2, 3):
        values = np.array([[_rating(i, 0, 100, count)] for i in range(count)])
        savemat(place / f"mosz{number}.mat", {"MOSz": values})
    _excel(labels / "AIGCIQA2023_Prompts.xlsx", None, [["Basic", "Animals", _prompt(i)] for i in range(2)])
    return Written("aigciqa2023", labels, images, "quality", count)


def _aigciqa2023_plus(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"{i}.png" for i in range(COUNT)])
    entries = [
        {
            "id": i,
            "prompt": _prompt(i),
            "img": name,
            **{f"moz{k}": _rating(i, 0, 1) for k in (1, 2, 3)},
            "q1": "?",
            "a1": ".",
        }
        for i, name in enumerate(names)
    ]
    return Written("aigciqa2023plus", _json(labels / "mint_test.json", entries), images, "quality")


def _au_iqa(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"{('SR', 'LLE')[i % 2]}/{i}.png" for i in range(COUNT)])
    rows = [
        [name, ("SR", "LLE")[i % 2], ("first", "second")[i // 2 % 2], _rating(i, 1, 5)] for i, name in enumerate(names)
    ]
    return Written("au-iqa", _csv(labels / "mos.csv", ["image", "type", "model", "mos"], rows), images, "quality")


def _koniq_10k(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"{i}.jpg" for i in range(COUNT)])
    sets = ["training"] * 8 + ["validation"] * 2 + ["test"] * 2
    rows = [[name, *[0] * 5, 10, _rating(i, 1, 100), 8.0, sets[i]] for i, name in enumerate(names)]
    header = ["image_name", "c1", "c2", "c3", "c4", "c5", "c_total", "MOS", "SD", "set"]
    return Written("koniq-10k", _csv(labels / "koniq10k_distributions_sets.csv", header, rows), images, "quality")


def _kadid_10k(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"I{1 + i // 4:02}_01_{i % 4 + 1:02}.png" for i in range(COUNT)])
    rows = [[name, f"{name[:3]}.png", _rating(i, 1, 5), 0.25] for i, name in enumerate(names)]
    return Written(
        "kadid-10k", _csv(labels / "dmos.csv", ["dist_img", "ref_img", "dmos", "var"], rows), images, "quality"
    )


def _spaq(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"{i:05}.jpg" for i in range(COUNT)])
    header = ["Image name", "MOS", "Brightness", "Colorfulness", "Contrast", "Noisiness", "Sharpness"]
    rows = [[name, *[_rating(i, 0, 100)] * 6] for i, name in enumerate(names)]
    return Written("spaq", _excel(labels / "MOS and Image attribute scores.xlsx", header, rows), images, "quality")


def _pyiqa(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"a/{i}.png" for i in range(COUNT)])
    rows = [["a/ref.png", name, _rating(i, 0, 5), 0.2] for i, name in enumerate(names)]
    return Written("pyiqa", _csv(labels / "meta.csv", ["ref_name", "dist_name", "mos", "std"], rows), images, "quality")


def _q_align(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"{i}.png" for i in range(COUNT)])
    entries = [{"img_path": f"./{name}", "gt_score": _rating(i, 0, 5)} for i, name in enumerate(names)]
    return Written("q-align", _json(labels / "test.json", entries), images, "quality")


def _generic(labels: Path, images: Path) -> Written:
    names = _draw(images, [f"{i}.webp" for i in range(COUNT)])
    rows = [[name, _rating(i, 0, 10), "bc"[i % 2]] for i, name in enumerate(names)]
    return Written("generic", _csv(labels / "mine.csv", ["file", "score", "batch"], rows), images, "mos")


LAYOUTS = {
    "agiqa-1k": _agiqa_1k,
    "agiqa-3k": _agiqa_3k,
    "aigiqa-20k": _aigiqa_20k,
    "aigciqa2023": _aigciqa2023,
    "aigciqa2023plus": _aigciqa2023_plus,
    "au-iqa": _au_iqa,
    "koniq-10k": _koniq_10k,
    "kadid-10k": _kadid_10k,
    "spaq": _spaq,
    "pyiqa": _pyiqa,
    "q-align": _q_align,
    "generic": _generic,
}
"""All layouts of ratings. Those of preferences are written by ``write_preferences``."""


def write_preferences(name: str, folder: Path) -> Written:
    """Writes preferences as ``hpdv2``, ``imagereward`` or ``pick-a-pic`` has them: the brighter one is preferred."""
    images = folder / "images"
    images.mkdir(parents=True)
    names = _draw(images, [f"{i}.png" for i in range(COUNT)])
    pairs = [(names[i], names[i + 1]) for i in range(0, COUNT, 2)]
    entries: dict[str, list[dict[str, Any]]] = {
        "hpdv2": [
            {"prompt": _prompt(i), "file_path": list(pair), "human_preference": [0, 1]} for i, pair in enumerate(pairs)
        ],
        "imagereward": [
            {"prompt": _prompt(i), "generations": list(pair), "ranking": [2, 1]} for i, pair in enumerate(pairs)
        ],
        "pick-a-pic": [
            {"caption": _prompt(i), "image_0_uid": pair[0][:-4], "image_1_uid": pair[1][:-4], "label_0": 0.0}
            for i, pair in enumerate(pairs)
        ],
    }
    return Written(name, _json(folder / "test.json", entries[name]), images, "", len(pairs))


def _draw(images: Path, names: Sequence[str], step: int = 18) -> list[str]:
    for number, name in enumerate(names):
        path = images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (24, 20), (20 + step * number,) * 3).save(path)
    return list(names)


def _rating(number: int, low: float, high: float, count: int = COUNT) -> float:
    return low + (high - low) * (number + 1) / (count + 1)


def _prompt(number: int) -> str:
    return PROMPTS[number % len(PROMPTS)]


def _csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def _excel(path: Path, header: Sequence[str] | None, rows: Iterable[Sequence[Any]]) -> Path:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    for row in ([header] if header else []) + list(rows):
        sheet.append(list(row))
    book.save(path)
    return path


def _json(path: Path, entries: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(entries), "utf-8")
    return path
