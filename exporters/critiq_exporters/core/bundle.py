"""Bundles on disk: staged beside their place, completed, checked as the server checks them, then renamed."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from critiq_exporters.core.exportable import Exportable
from critiq_exporters.core.graphs import ExportError
from critiq_exporters.core.pictures import Pixels
from critiq_server.bundles.golden import FEATURES_FROM_LMM, feature_entry
from critiq_server.bundles.manifest import GOLDEN_FILE, MANIFEST_FILE, Dimension, Manifest, Provenance, Stage
from critiq_server.bundles.model import BrokenBundle, load_model
from critiq_server.runtime.onnx import RuntimeSettings


def write_golden(
    folder: Path,
    pictures: Sequence[Pixels],
    prompts: Sequence[str],
    expected: Mapping[str, NDArray[np.float64]],
    features: Mapping[str, NDArray[np.generic]],
    *,
    features_from_lmm: bool,
) -> None:
    """Records ``pictures``, ``prompts`` and what each dimension gives for them, for the server to replay.

    ``features`` holds those of LMM stages, which the replay takes as given; if they are the LMM's own, the server also
    asks its LMM for them.
    """
    arrays: dict[str, NDArray[Any]] = {f"image_{number}": picture for number, picture in enumerate(pictures)}
    np.savez_compressed(
        folder / GOLDEN_FILE,
        allow_pickle=False,
        **arrays,
        **{feature_entry(stage): values[: len(pictures)] for stage, values in features.items()},
        **({FEATURES_FROM_LMM: np.array(features_from_lmm)} if features else {}),
        prompts=np.array(prompts),
        dimensions=np.array(list(expected)),
        expected=np.stack([values[: len(pictures)] for values in expected.values()], axis=1),
    )


def write_manifest(
    folder: Path,
    model: Exportable,
    stages: Sequence[Stage],
    dimensions: Sequence[Dimension],
    *,
    name: str,
    version: str,
    command: str,
    notes: str,
) -> None:
    """Describes the files in ``folder``; nothing in it may change afterwards."""
    manifest = Manifest(
        name=name,
        version=version,
        family=model.card.family,
        title=model.card.title,
        description=model.description,
        stages=list(stages),
        tokenizers=dict(model.tokenizers),
        dimensions=list(dimensions),
        licence=model.licence,
        provenance=Provenance(created=today(), command=command, source=model.source, notes=notes),
        files={path.name: sha256(path) for path in sorted(folder.iterdir())},
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=1) + "\n", "utf-8")


def publish(folder: Path, place: Path) -> None:
    """Moves a complete bundle to ``place``, if the server would serve it. Raises ``ExportError`` if not."""
    try:
        load_model(folder, RuntimeSettings(provider="cpu"))
    except BrokenBundle as error:
        raise ExportError(f"the server would refuse the bundle: {error}") from error
    folder.rename(place)


def sha256(path: Path) -> str:
    """Of a file's content, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def today() -> str:
    """ISO 8601, in UTC."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()
