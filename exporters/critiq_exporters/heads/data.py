"""What heads are trained on: stored features by the name of their picture, and a table of labels."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from critiq.cli.exits import UsageError
from critiq_exporters.features.catalogue import Asked
from critiq_exporters.features.contents import chosen_questions, rows
from critiq_server.features.disk import DiskStore

NAME_COLUMNS = ("picture", "name", "file", "image")


@dataclass(frozen=True)
class StoredFeatures:
    """Of all pictures that have an answer to every question.

    Attributes:
        place: row of each picture, by its name.
        pictures: ``pixels_key`` of each row, hexadecimal.
        answers: by instruction, ``[pictures, width]``, float16 where they are kept so, otherwise float32.
        questions: what was asked, by instruction.
    """

    place: Mapping[str, int]
    pictures: Sequence[str]
    answers: Mapping[str, Tensor]
    questions: Mapping[str, Asked]

    def of(self, instruction: str, names: Sequence[str]) -> Tensor:
        """Answers to one question, float32 ``[names, width]``."""
        return self.answers[instruction][[self.place[name] for name in names]].float()

    def scale(self, instruction: str) -> float:
        """Root of the mean square of all answers: large where an LMM's hidden states are."""
        return float(self.answers[instruction].double().square().mean().sqrt().clamp_min(1e-6))


def load_features(store: Path, instructions: Sequence[str]) -> StoredFeatures:
    """The features of ``instructions`` in ``store``, all in memory.

    Raises:
        StoreError: the store cannot be opened.
        UsageError: a question is not in it, or no picture has an answer to all.
    """
    with DiskStore(store, read_only=True) as opened:
        asked = chosen_questions(opened, instructions)
        found = [(row.entry, row.features) for row in rows(opened, asked)]
    if not found:
        raise UsageError(f"{store} holds no picture with answers to {', '.join(instructions)}")
    answers = {}
    for one in asked.values():
        name = one.lmm.instruction
        dtype = np.float16 if one.lmm.stored == "float16" else np.float32
        answers[name] = torch.from_numpy(np.stack([features[name] for _, features in found]).astype(dtype))
    return StoredFeatures(
        {entry.name: number for number, (entry, _) in enumerate(found)},
        [entry.picture for entry, _ in found],
        answers,
        {one.lmm.instruction: one for one in asked.values()},
    )


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a ``.csv`` or ``.jsonl`` file, every value as text; raises ``UsageError`` if it is neither."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if path.suffix.lower() == ".csv":
        return [{name: value or "" for name, value in row.items() if name} for row in csv.DictReader(text.splitlines())]
    if path.suffix.lower() != ".jsonl":
        raise UsageError(f"{path}: labels come as .csv or .jsonl")
    table = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UsageError(f"{path}, line {number}: no JSON: {error}") from error
            if not isinstance(row, dict):
                raise UsageError(f"{path}, line {number}: no JSON object")
            table.append({name: "" if value is None else str(value) for name, value in row.items()})
    return table


def column(table: Sequence[Mapping[str, str]], names: Iterable[str], path: Path) -> str:
    """The first of ``names`` that the table has; raises ``UsageError`` where it has none, or no rows."""
    names = tuple(names)
    if not table:
        raise UsageError(f"{path} holds no labels")
    for name in names:
        if name in table[0]:
            return name
    raise UsageError(f"{path}: none of the columns {', '.join(names)}; there are {', '.join(table[0])}")


def check_names(names: Iterable[str], features: StoredFeatures, path: Path) -> None:
    """Raises ``UsageError`` if a picture of the labels has no features."""
    if missing := sorted({name for name in names if name not in features.place}):
        shown = ", ".join(missing[:5])
        raise UsageError(
            f"{path} names {len(missing)} pictures without features in the store ({shown}); names are as in the "
            "build's source, see `critiq features stat` and `get`"
        )


def number(row: Mapping[str, str], name: str, path: Path) -> float:
    """A finite number; raises ``UsageError`` for anything else."""
    try:
        value = float(row[name])
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise UsageError(f"{path}: {name} of {next(iter(row.values()))!r} is {row[name]!r}, not a finite number")
    return value


def is_held_out(picture: str, share: float) -> bool:
    """Whether a picture is for judging, not for training: decided by the picture alone, the same in every run."""
    digest = blake3(b"critiq/heads/1\0" + picture.encode()).digest()
    return int.from_bytes(digest[:4], "big") < share * 2**32


def shuffled(count: int, batch: int) -> list[list[int]]:
    """The numbers below ``count`` in batches, in an order that torch's seed decides."""
    order = torch.randperm(count).tolist()
    return [order[start : start + batch] for start in range(0, count, batch)]
