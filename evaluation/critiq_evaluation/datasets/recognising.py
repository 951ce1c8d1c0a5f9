"""What layout a bare label file has."""

from __future__ import annotations

import re
from pathlib import Path

from critiq_evaluation.datasets.tables import read_json, read_table


def looks_like(labels: Path) -> str:
    """The name of the layout that a bare label file has, by its columns; empty if it is none that is known."""
    if labels.is_dir():
        if list(labels.rglob("mosz1.mat")):
            return "aigciqa2023"
        return "aigiqa-20k" if list(labels.glob("info_*")) else ""
    if labels.suffix in (".json", ".jsonl"):
        return _by_keys(set(read_json(labels)[0]))
    if re.fullmatch(r"info_(train|val|test)", labels.stem):
        return "aigiqa-20k"
    columns = set(read_table(labels).columns)
    for wanted, name in _SIGNATURES:
        if wanted <= columns:
            return name
    return ""


def _by_keys(keys: set[str]) -> str:
    for wanted, name in (
        ({"img", "moz1", "moz2", "moz3"}, "aigciqa2023+"),
        ({"img_path", "gt_score"}, "q-align"),
        ({"human_preference", "image_path"}, "hpd-v2"),
        ({"generations", "ranking"}, "imagereward"),
        ({"image_0_uid", "image_1_uid"}, "pick-a-pic"),
    ):
        if wanted <= keys:
            return name
    return ""


_SIGNATURES: tuple[tuple[set[str], str], ...] = (
    ({"name", "mos_quality", "mos_align"}, "agiqa-3k"),
    ({"image_name", "MOS", "SD"}, "koniq-10k"),
    ({"dist_img", "ref_img", "dmos"}, "kadid-10k"),
    ({"Image name", "MOS", "Sharpness"}, "spaq"),
    ({"image_0_uid", "image_1_uid", "label_0"}, "pick-a-pic"),
    ({"ref_name", "dist_name", "mos"}, "pyiqa"),
    ({"name", "mos", "std"}, "pyiqa"),
)
