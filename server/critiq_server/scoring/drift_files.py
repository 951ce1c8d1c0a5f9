"""What is known of drift, kept over a restart: one file, replaced as a whole."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson
import structlog

from critiq_server.scoring.drift_report import Named
from critiq_server.scoring.drift_series import Kind

logger = structlog.get_logger("critiq")

NAME = "drift.json"
FORMAT = 1


def key_of(model: str, version: str, label: str, kind: str, name: str) -> str:
    """A name for a series, by which it is found again."""
    return orjson.dumps([model, version, label, kind, name]).decode()


def parts_of(key: str) -> tuple[str, str, str, Kind, str]:
    """What :func:`key_of` was given."""
    model, version, label, kind, name = orjson.loads(key)
    return model, version, label, kind, name


def save(directory: Path, series: Iterable[Named], others: Mapping[str, Any]) -> None:
    """Writes ``series``, and ``others`` that were loaded and not claimed yet. A failure is logged, never raised."""
    dumped = dict(others)
    dumped |= {
        key_of(model, version, label, entry.kind, entry.name): entry.dump() for model, version, label, entry in series
    }
    body = orjson.dumps(dumped)
    head = orjson.dumps({"format": FORMAT, "sha256": hashlib.sha256(body).hexdigest()})
    path = directory / NAME
    new = path.with_name(f"{NAME}.new")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            file.write(head + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except OSError as error:
        logger.warning("what is known of drift could not be saved", file=str(path), reason=str(error))


def load(directory: Path) -> dict[str, Any]:
    """What :func:`save` wrote, by key. A file that cannot be read is set aside, reported, and left out."""
    path = directory / NAME
    try:
        head, _, body = path.read_bytes().partition(b"\n")
        about = orjson.loads(head)
        if about["format"] != FORMAT:
            raise ValueError(f"it has format {about['format']}, this program reads format {FORMAT}")
        if about["sha256"] != hashlib.sha256(body).hexdigest():
            raise ValueError("its checksum is wrong")
        found = dict(orjson.loads(body))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        aside = path.with_name(f"{NAME}.broken-{int(time.time())}")
        try:
            path.replace(aside)
        except OSError:
            aside = path
        logger.warning(
            "what was known of drift cannot be read; starting anew", reason=str(error) or repr(error), kept=str(aside)
        )
        return {}
    return found
