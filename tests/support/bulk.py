"""Inputs for bulk scoring: the same pictures in every form that it takes, and rows read back."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from PIL import Image

from critiq_server.bulk.run import Options, Outcome, run
from tests.support.servers import make_settings

SHADES = 7
"""Grey values are multiples of it, so that each picture's brightness says which it is."""


@dataclass(frozen=True)
class Sample:
    name: str
    data: bytes
    prompt: str


def samples(count: int) -> list[Sample]:
    """PNG pictures of one grey each: the first is black, the next lighter by ``SHADES``, modulo 256."""
    found = []
    for number in range(count):
        file = io.BytesIO()
        Image.new("RGB", (24, 24), (number * SHADES % 256,) * 3).save(file, "PNG")
        found.append(Sample(f"{number:04d}", file.getvalue(), ["a cat", "a red house", "dog"][number % 3]))
    return found


def write_folder(root: Path, entries: Sequence[Sample], *, sidecars: bool = True) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for entry in entries:
        (root / f"{entry.name}.png").write_bytes(entry.data)
        if sidecars:
            (root / f"{entry.name}.txt").write_text(entry.prompt)
    return root


def write_table(path: Path, entries: Sequence[Sample], *, group: int = 1000, **columns: Any) -> Path:
    table = {
        "id": [entry.name for entry in entries],
        "image": [entry.data for entry in entries],
        "prompt": [entry.prompt for entry in entries],
        **columns,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(table), path, row_group_size=group)
    return path


def write_tar(path: Path, entries: Sequence[Sample], *, form: str = "txt") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as tar:
        for entry in entries:
            text = entry.prompt if form == "txt" else json.dumps({"caption": entry.prompt, "key": entry.name})
            for name, data in ((f"{entry.name}.png", entry.data), (f"{entry.name}.{form}", text.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def rows_of(output: Path, *, timeless: bool = True) -> list[dict[str, Any]]:
    """The output's rows, in order of source and row."""
    table = pyarrow.parquet.read_table(output)
    rows: list[dict[str, Any]] = table.drop_columns(["time"] if timeless else []).to_pylist()
    return sorted(rows, key=lambda row: (row["source"], row["row"]))


def score_in_bulk(source: Path | str, output: Path | str, bundles: Path, **options: Any) -> Outcome:
    """A run over ``source``, in this process unless ``options`` say otherwise."""
    sections = options.pop("sections", {})
    default = options.pop("default", "tiny")
    asked = Options(**{"input": str(source), "output": str(output), "checkpoint": 8, **options})
    return run(asked, make_settings(bundles, default=default, **sections), lambda *told: None, lambda *told: None)
