"""Raw scores with ratings: from a file that has both, or by asking a bundle that is served for the purpose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from critiq_evaluation.calibration.labels import read_rows
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.local_server import local_server
from critiq_evaluation.scoring import Asked, score_pictures
from critiq_evaluation.statistics.arrays import Floats
from critiq_server.bundles.manifest import Manifest

_MAX_FAILED_SHARE = 0.5


@dataclass(frozen=True)
class Labelled:
    """Raw values and ratings ``[count]`` that belong together, and what was left out and why."""

    raw: Floats
    ratings: Floats
    left_out: tuple[str, ...] = ()


def from_scores(path: Path, columns: Mapping[str, str]) -> Labelled:
    """A CSV file with a column of raw values and one of ratings."""
    rows = read_rows(path, ("score", "rating"), columns)
    raw, ratings = (np.array([row.number(what) for row in rows]) for what in ("score", "rating"))
    return Labelled(raw, ratings)


def rated_pictures(
    path: Path, columns: Mapping[str, str], bounds: tuple[float, float] | None = None
) -> dict[Asked, float]:
    """Pictures and their ratings; a picture that is named twice has the mean of its ratings.

    Raises:
        EvaluationError: see :func:`read_rows`; a rating is no number, or outside ``bounds``.
    """
    found: dict[Asked, list[float]] = {}
    for row in read_rows(path, ("image", "rating"), columns, optional=("prompt",)):
        asked = Asked(row.cells["image"], row.cells.get("prompt", ""))
        rating = row.number("rating")
        if bounds is not None and not bounds[0] <= rating <= bounds[1]:
            raise EvaluationError(
                f"{row.place}: the rating {rating:g} is outside the scale {bounds[0]:g} to {bounds[1]:g}"
            )
        found.setdefault(asked, []).append(rating)
    return {asked: float(np.mean(ratings)) for asked, ratings in found.items()}


def from_pictures(
    path: Path,
    columns: Mapping[str, str],
    images: Path,
    bundle: Path,
    manifest: Manifest,
    dimension: str,
    cache: Path | None = None,
) -> Labelled:
    """Scores the pictures of a label file with the bundle; those that fail are left out and listed.

    Raises:
        EvaluationError: more than half of the pictures have no score; the message has the first reason.
    """
    rated = rated_pictures(path, columns)
    values, failures = raw_values(list(rated), images, bundle, manifest, dimension, cache)
    if len(failures) > _MAX_FAILED_SHARE * len(rated):
        first, why = next(iter(failures.items()))
        raise EvaluationError(
            f"{len(failures)} of {len(rated)} pictures have no score; the first, {first.image}: {why}"
        )
    known = [asked for asked in rated if asked in values]
    return Labelled(
        np.array([values[asked] for asked in known]),
        np.array([rated[asked] for asked in known]),
        tuple(f"{asked.image}: {why}" for asked, why in failures.items()),
    )


def raw_values(
    pictures: list[Asked],
    images: Path,
    bundle: Path,
    manifest: Manifest,
    dimension: str,
    cache: Path | None = None,
) -> tuple[dict[Asked, float], dict[Asked, str]]:
    """Raw values as the model gives them, and why pictures have none. The bundle is served in a process of its own."""
    with local_server([f"{manifest.name}:{manifest.version}"], [bundle]) as url:
        model = f"{manifest.name}:{manifest.version}"
        found = score_pictures(pictures, images, [model], server=url, cache=cache, dimensions=[dimension])[0]
    sign = -1.0 if manifest.dimension(dimension).direction == "lower_is_better" else 1.0
    values = {asked: sign * value for asked, value in found.values(dimension).items()}
    return values, dict(found.failures(dimension))


def pictures_in(directory: Path) -> list[Asked]:
    """The picture files of a folder and those below it, without prompts. Raises :class:`EvaluationError`."""
    if not directory.is_dir():
        raise EvaluationError(f"{directory} is no directory of pictures")
    suffixes = {suffix for suffix, format_ in Image.registered_extensions().items() if format_ in _FORMATS}
    paths = sorted(path for path in directory.rglob("*") if path.suffix.lower() in suffixes)
    if not paths:
        raise EvaluationError(f"{directory}: there are no pictures in it")
    return [Asked(path.relative_to(directory).as_posix()) for path in paths]


_FORMATS = {"JPEG", "PNG", "WEBP", "AVIF"}
