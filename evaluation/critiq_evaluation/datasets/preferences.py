"""Preferences: of several pictures of one prompt, which do people prefer?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from critiq_evaluation.datasets.collecting import Collector, as_number
from critiq_evaluation.datasets.tables import read_json, read_table
from critiq_evaluation.datasets.types import Dataset


def hpd_v2(labels: Path, columns: Mapping[str, str]) -> Dataset:
    """HPD v2: ``image_path`` beside ``human_preference`` (1 is preferred), or beside ``rank`` (1 is best)."""
    found = Collector("HPD v2", {})
    for number, entry in enumerate(read_json(labels)):
        place, images = f"{labels.name}, entry {number}", entry.get("image_path")
        preferred, ranks = entry.get("human_preference"), entry.get("rank")
        order = [-value for value in preferred] if _numbers(preferred) else ranks
        _compare(found, place, images, order, str(entry.get("prompt", "")))
    return found.dataset()


def image_reward(labels: Path, columns: Mapping[str, str]) -> Dataset:
    """ImageReward: ``generations`` beside ``ranking`` (1 is best; equal ranks are no preference)."""
    found = Collector("ImageReward", {})
    for number, entry in enumerate(read_json(labels)):
        place = f"{labels.name}, entry {number}"
        _compare(found, place, entry.get("generations"), entry.get("ranking"), str(entry.get("prompt", "")))
    return found.dataset()


def pick_a_pic(labels: Path, columns: Mapping[str, str]) -> Dataset:
    """Pick-a-Pic: ``caption``, ``image_0_uid``, ``image_1_uid``, ``label_0`` (1, 0, or 0.5 for a tie), CSV or JSON.

    Pictures are ``UID.jpg``; with ``--column extension=png`` they end otherwise.
    """
    found = Collector("Pick-a-Pic", {})
    ending = columns.get("extension", "jpg").lstrip(".")
    entries: list[tuple[str, Mapping[str, Any]]]
    if labels.suffix in (".json", ".jsonl"):
        entries = [(f"{labels.name}, entry {number}", entry) for number, entry in enumerate(read_json(labels))]
    else:
        table = read_table(labels)
        table.need("caption", "image_0_uid", "image_1_uid", "label_0")
        entries = [(row.place, row.cells) for row in table.rows]
    for place, entry in entries:
        images = [f"{entry[key]}.{ending}" if entry.get(key) else "" for key in ("image_0_uid", "image_1_uid")]
        first = as_number(entry.get("label_0", ""))
        order = None if first is None else [1 - first, first]
        _compare(found, place, images, order, str(entry.get("caption", "")))
    return found.dataset()


def _compare(found: Collector, place: str, images: object, order: object, prompt: str) -> None:
    """All pairs of one prompt; ``order``: smaller is better, equal is no preference."""
    if not isinstance(images, list) or not _numbers(order) or len(images) != len(order) or len(images) < 2:
        found.problem(place, "the pictures and their order do not belong together; it was left out")
        return
    ties = 0
    for first, second in combinations(range(len(images)), 2):
        if order[first] == order[second]:
            ties += 1
            continue
        better, worse = (first, second) if order[first] < order[second] else (second, first)
        found.preference(place, str(images[better]), str(images[worse]), prompt)
    if ties:
        found.problem(place, f"{ties} pairs are tied; they are no preference and were left out")


def _numbers(given: object) -> Any:
    return isinstance(given, Sequence) and bool(given) and all(isinstance(value, int | float) for value in given)
