"""What is in a store of features: counting, checking, taking out, merging."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from critiq.cli.exits import UsageError
from critiq_exporters.features.catalogue import Asked, Entry, entries, questions
from critiq_server.features.disk import DiskStore
from critiq_server.features.files import DATA_FILE, every_page_reads
from critiq_server.features.keys import Key
from critiq_server.features.records import RecordError, decode
from critiq_server.features.store import StoreDamaged
from critiq_server.runtime.lmm.base import FEATURE

_AT_ONCE = 500
"""Entries in one transaction, or in one row group of a Parquet file."""


def statistics(store: DiskStore) -> dict[str, Any]:
    """Plain values: what the store holds, of how many pictures, for each question."""
    status = store.status()
    counts: Counter[str] = Counter()
    pictures = 0
    for entry in entries(store):
        pictures += 1
        counts.update(entry.features.keys())
    asked = {
        digest: {
            "instruction": one.lmm.instruction,
            "backbone": one.lmm.backbone,
            "model": one.lmm.model,
            "revision": one.lmm.revision,
            "width": one.lmm.width,
            "stored": one.lmm.stored,
            "pictures": counts[digest],
        }
        for digest, one in questions(store).items()
    }
    return {
        "path": str(store.path),
        "format": status.format,
        "features": status.entries,
        "pictures": pictures,
        "file_bytes": status.file_bytes,
        "entry_bytes": status.entry_bytes,
        "questions": asked,
    }


@dataclass(slots=True)
class Verdict:
    """What checking a store found; the lists name keys and pictures."""

    features: int = 0
    pictures: int = 0
    damaged: list[str] = field(default_factory=list)
    incomplete: list[str] = field(default_factory=list)
    content: str = ""

    @property
    def good(self) -> bool:
        return not self.damaged and not self.incomplete


def verify(path: Path) -> Verdict:
    """Reads everything: pages, checksums, and whether every picture's features are there.

    Raises:
        StoreError: the store cannot be opened, or its pages cannot be read.
    """
    if (path / DATA_FILE).is_file() and not every_page_reads(path):
        raise StoreDamaged(f"{path} is damaged: not all of its pages can be read; build it anew")
    with DiskStore(path, read_only=True) as store:
        verdict = Verdict()
        intact: set[Key] = set()
        for key, record in store.records():
            verdict.features += 1
            try:
                decode(record)
                intact.add(bytes(key))
            except RecordError as error:
                verdict.damaged.append(f"{key.hex()}: {error}")
        for entry in entries(store):
            verdict.pictures += 1
            if any(bytes.fromhex(key) not in intact for key in entry.features.values()):
                verdict.incomplete.append(entry.name)
        verdict.content = store.content_digest()
        return verdict


@dataclass(slots=True)
class Merged:
    """What merging did. ``conflicts`` names pictures that two stores know under one name, but not as the same."""

    features: int = 0
    pictures: int = 0
    conflicts: list[str] = field(default_factory=list)


def merge(into: DiskStore, source: DiskStore, merged: Merged) -> None:
    """Copies features and notes; what is there already stays. Repeating it changes nothing, so it may be interrupted.

    Where names conflict, the first picture keeps the name; the features of both are there. Counts go to ``merged``.
    """
    for chunk in _chunks(source.records()):
        records = dict(chunk)
        merged.features += len(records) - len(into.holds(records))
        into.put_records(records)
    for named in _chunks(source.notes()):
        into.put_many({}, dict(_joined(into, name, note, merged) for name, note in named))


def _joined(into: DiskStore, name: str, note: dict[str, Any], merged: Merged) -> tuple[str, dict[str, Any]]:
    there = into.note(name)
    if there is None or there == note or "features" not in note:
        merged.pictures += there is None and "features" in note
        return name, note
    if any(there[part] != note[part] for part in ("prompt", "picture")):
        merged.conflicts.append(name.partition(":")[2])
        return name, there
    return name, {**there, "features": {**note["features"], **there["features"]}}


@dataclass(frozen=True, slots=True)
class Row:
    """One picture with a feature for each question, float32 ``[width]``."""

    entry: Entry
    features: Mapping[str, NDArray[np.float32]]
    """By instruction."""


def rows(store: DiskStore, asked: Mapping[str, Asked]) -> Iterator[Row]:
    """The pictures that have features for all of ``asked`` (by digest), in an order that depends on the names alone."""
    for chunk in _chunks(entry for entry in entries(store) if asked.keys() <= entry.features.keys()):
        found = store.get_many({bytes.fromhex(entry.features[digest]) for entry in chunk for digest in asked})
        for entry in chunk:
            keys = {digest: bytes.fromhex(entry.features[digest]) for digest in asked}
            if all(key in found for key in keys.values()):
                features = {
                    asked[digest].lmm.instruction: found[key][FEATURE].astype(np.float32, copy=False)
                    for digest, key in keys.items()
                }
                yield Row(entry, features)


def chosen_questions(store: DiskStore, wanted: Sequence[str]) -> dict[str, Asked]:
    """By digest, the questions whose instruction or digest (or its beginning) is in ``wanted``; none: all.

    Raises:
        UsageError: one of ``wanted`` is not there, or an instruction was asked of several LMMs.
    """
    there = questions(store)
    chosen = {
        digest: one
        for digest, one in there.items()
        if not wanted or any(name == one.lmm.instruction or digest.startswith(name) for name in wanted)
    }
    told = ", ".join(f"{one.lmm.instruction} ({digest[:12]})" for digest, one in there.items()) or "none"
    for name in wanted:
        if not any(name == one.lmm.instruction or digest.startswith(name) for digest, one in chosen.items()):
            raise UsageError(f"{store.path} holds no question {name!r}; it holds {told}")
    if len({one.lmm.instruction for one in chosen.values()}) < len(chosen):
        raise UsageError(f"{store.path} holds answers of several LMMs to one question; choose by digest: {told}")
    return chosen


def export(store: DiskStore, output: Path, asked: Mapping[str, Asked]) -> int:
    """Writes the pictures that have all of ``asked`` to ``output``; returns how many.

    ``.safetensors``: one tensor ``[pictures, width]`` a question, in the format that the features are kept in, under
    the instruction's name; names, prompts and keys of the pictures as JSON in the metadata. It is all held in memory.
    ``.parquet``: one row a picture: ``name``, ``prompt``, ``picture`` (key), and a list of floats a question.

    Raises:
        UsageError: another suffix, a missing library, or nothing to write.
    """
    writers = {".safetensors": _export_safetensors, ".parquet": _export_parquet}
    writer = writers.get(output.suffix.lower())
    if writer is None:
        raise UsageError(f"{output}: features are exported to {' or '.join(writers)}")
    if not asked:
        raise UsageError(f"{store.path} says of no feature what it is of; only stores that were built can be exported")
    count = writer(store, output, asked)
    if not count:
        output.unlink(missing_ok=True)
        raise UsageError(f"{store.path} holds no picture with all {len(asked)} features")
    return count


def _export_safetensors(store: DiskStore, output: Path, asked: Mapping[str, Asked]) -> int:
    try:
        from safetensors.numpy import save_file
    except ModuleNotFoundError as error:
        raise UsageError("this needs safetensors: pip install 'critiq[lmm]'") from error
    all_rows = list(rows(store, asked))
    if not all_rows:
        return 0
    tensors = {}
    for one in asked.values():
        # bfloat16 is none of numpy's dtypes, and float32 holds every value of it.
        dtype = np.float16 if one.lmm.stored == "float16" else np.float32
        tensors[one.lmm.instruction] = np.stack([row.features[one.lmm.instruction] for row in all_rows]).astype(dtype)
    metadata = {
        "format": "critiq-features-export/1",
        "names": json.dumps([row.entry.name for row in all_rows]),
        "prompts": json.dumps([row.entry.prompt for row in all_rows]),
        "pictures": json.dumps([row.entry.picture for row in all_rows]),
        "questions": json.dumps({one.lmm.instruction: one.note()[1] for one in asked.values()}),
    }
    save_file(tensors, output, metadata)
    return len(all_rows)


def _export_parquet(store: DiskStore, output: Path, asked: Mapping[str, Asked]) -> int:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UsageError("Parquet files need pyarrow: pip install 'critiq[parquet]'") from error
    names = [one.lmm.instruction for one in asked.values()]
    texts = [(name, pyarrow.string()) for name in ("name", "prompt", "picture")]
    schema = pyarrow.schema(
        [*texts, *((name, pyarrow.list_(pyarrow.float32())) for name in names)],
        metadata={"questions": json.dumps({one.lmm.instruction: one.note()[1] for one in asked.values()})},
    )
    count = 0
    with pyarrow.parquet.ParquetWriter(output, schema) as writer:
        for chunk in _chunks(rows(store, asked)):
            columns: dict[str, list[Any]] = {
                "name": [row.entry.name.encode("utf-8", "replace").decode() for row in chunk],
                "prompt": [row.entry.prompt for row in chunk],
                "picture": [row.entry.picture for row in chunk],
                **{name: [row.features[name] for row in chunk] for name in names},
            }
            writer.write_table(pyarrow.table(columns, schema=schema))
            count += len(chunk)
    return count


def _chunks(values: Iterator[Any] | Any) -> Iterator[list[Any]]:
    chunk: list[Any] = []
    for value in values:
        chunk.append(value)
        if len(chunk) == _AT_ONCE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
