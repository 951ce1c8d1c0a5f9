"""New versions of a bundle: the same graphs with another calibration, or with one more head. Bundles are immutable."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from critiq_evaluation.calibration.curves import Map
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.statistics.arrays import Floats
from critiq_server.bundles.manifest import MANIFEST_FILE, Calibration, Dimension, Manifest, Reference
from critiq_server.bundles.model import BrokenBundle, load_model, read_manifest, verify_files
from critiq_server.bundles.staging import staging
from critiq_server.runtime.onnx import RuntimeSettings
from critiq_server.scoring.judgement import Judgement

_QUANTILES = 101


def open_bundle(directory: Path) -> Manifest:
    """The manifest of a whole bundle. Raises :class:`EvaluationError`."""
    try:
        manifest = read_manifest(directory)
        verify_files(directory, manifest)
    except BrokenBundle as error:
        raise EvaluationError(str(error)) from error
    return manifest


def dimension_of(manifest: Manifest, name: str) -> Dimension:
    """Raises :class:`EvaluationError` if there is none; the message lists those that there are."""
    try:
        return manifest.dimension(name)
    except KeyError:
        known = ", ".join(dimension.name for dimension in manifest.dimensions)
        raise EvaluationError(
            f"the model {manifest.name}:{manifest.version} has no dimension {name!r}; it has {known}"
        ) from None


def calibration_of(
    fitted: Map, dimension: Dimension, bounds: tuple[float, float], stated: tuple[float, float], labels: int
) -> Calibration:
    """The map as a bundle carries it: from raw values to 0..1, where 0 and 1 are the ends of the ratings' scale.

    Args:
        fitted: a map of scores of which higher ones are better; raw values of a dimension where lower is better are
            those scores negated.
        bounds: the ends of the map's scale, which become 0 and 1.
        stated: the ends of the ratings' scale as people used it, for the bundle's reader.
    """
    scores, share = np.array(fitted.scores), (np.array(fitted.ratings) - bounds[0]) / (bounds[1] - bounds[0])
    if dimension.direction == "lower_is_better":
        scores, share = -scores[::-1], share[::-1]
    low, high = stated
    return Calibration(
        raw=scores.tolist(),
        calibrated=np.clip(share, 0.0, 1.0).tolist(),
        method=f"{fitted.method} on {labels} human ratings of {low:g} to {high:g}, linear between points: "
        f"rating = {low:g} + {high - low:g} x calibrated",
    )


def reference_of(raw: Floats, population: str) -> Reference:
    """Quantiles of raw values, in steps of one percent."""
    quantiles = np.quantile(raw, np.linspace(0, 1, _QUANTILES))
    return Reference(population=population, count=raw.size, quantiles=quantiles.tolist())


def calibrated_values(raw: Floats, dimension: Dimension) -> Floats | None:
    """What the server gives for raw values, rounding included; ``None`` where the dimension has no calibration."""
    if dimension.calibration is None:
        return None
    judgement = Judgement(dimension, "", "")
    return np.array([judgement.score(float(value), from_store=False).calibrated for value in raw])


def with_dimension(manifest: Manifest, dimension: Dimension) -> Manifest:
    """The manifest with one dimension exchanged."""
    dimensions = [dimension if entry.name == dimension.name else entry for entry in manifest.dimensions]
    return manifest.model_copy(update={"dimensions": dimensions})


def place_of(out: Path, manifest: Manifest, version: str) -> Path:
    """Where a version goes: ``OUT/NAME/VERSION``. Raises :class:`EvaluationError` if it is taken or no version."""
    if version == manifest.version:
        raise EvaluationError(f"--version {version!r} is the bundle's own; a new one is due, such as {version}-people")
    if not re.fullmatch(r"[a-z0-9][a-z0-9_.-]{0,63}", version):
        raise EvaluationError(f"--version {version!r}: small letters, digits, _ . and - are possible, at most 64")
    place = out / manifest.name / version
    if place.exists():
        raise EvaluationError(f"{place} exists; bundles are immutable, choose another version")
    return place


def write_version(
    bundle: Path,
    manifest: Manifest,
    place: Path,
    *,
    command: str,
    notes: str,
    change: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Writes a bundle with the files of ``bundle`` and this manifest, under the version that ``place`` is called.

    Args:
        manifest: as it shall be, but for version, provenance and digests of files.
        notes: added to the provenance's notes.
        change: adds or replaces files in the folder before their digests are taken.

    Raises:
        EvaluationError: the server would refuse it: the golden records come out differently, for instance. Nothing is
            written then.
    """
    with staging(place) as folder:
        for name in manifest.files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(bundle / name, folder / name)
        change(folder)
        own = manifest.provenance
        provenance = own.model_copy(
            update={
                "created": datetime.now(UTC).date().isoformat(),
                "command": f"{own.command}; {command}",
                "notes": f"{own.notes}; {notes}".removeprefix("; "),
            }
        )
        files = {str(path.relative_to(folder)): _sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}
        update = {"version": place.name, "provenance": provenance, "files": files}
        described = manifest.model_copy(update=update)
        try:
            Manifest.model_validate(described.model_dump())
            (folder / MANIFEST_FILE).write_text(described.model_dump_json(indent=1) + "\n", "utf-8")
            load_model(folder, RuntimeSettings(provider="cpu"))
        except ValidationError as error:
            problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
            raise EvaluationError(f"this makes no valid bundle: {problems}") from error
        except BrokenBundle as error:
            raise EvaluationError(f"the server would refuse the bundle: {error}") from error
        folder.rename(place)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
