"""Raw scores with ratings: from a file that has both, or by asking a bundle that is served for the purpose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from critiq_evaluation.calibration.labels import read_rows
from critiq_evaluation.datasets.layouts import parse_scale
from critiq_evaluation.datasets.reading import read
from critiq_evaluation.datasets.types import Scale
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.local_server import local_server
from critiq_evaluation.scoring import Asked, score_pictures
from critiq_evaluation.statistics.arrays import Floats
from critiq_server.bundles.manifest import Manifest

_MAX_FAILED_SHARE = 0.5


@dataclass(frozen=True)
class Labelled:
    """Raw values and ratings ``[count]`` that belong together, the scale's ends, and what was left out and why.

    Ratings of which lower ones are better are turned round within their scale: higher is better here.
    """

    raw: Floats
    ratings: Floats
    bounds: tuple[float, float]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rated:
    """Ratings by picture, higher is better, between the ``bounds``; ``problems`` are rows that were left out."""

    ratings: Mapping[Asked, float]
    bounds: tuple[float, float]
    problems: tuple[str, ...]


def from_scores(path: Path, columns: Mapping[str, str], scale: str) -> Labelled:
    """A table with a column of raw values and one of ratings, on a scale ``MIN:MAX``."""
    if not scale:
        raise EvaluationError("--scores needs the ratings' scale, for instance --scale 1:5 (5:1 where lower is better)")
    ends = parse_scale("--scale", scale)
    rows = read_rows(path, ("score", "rating"), columns)
    raw, ratings = (np.array([row.number(what) for row in rows]) for what in ("score", "rating"))
    outside = np.flatnonzero((ratings < ends.minimum) | (ratings > ends.maximum))
    if outside.size:
        row = rows[int(outside[0])]
        raise EvaluationError(
            f"{outside.size} ratings are outside the scale {ends.minimum:g} to {ends.maximum:g}, the first at "
            f"{row.place}: {row.cells['rating']}; give the ratings' own scale with --scale MIN:MAX"
        )
    return Labelled(raw, _turned(ratings, ends), (ends.minimum, ends.maximum))


def rated_pictures(path: Path, columns: Mapping[str, str], rating: str = "", scale: str = "") -> Rated:
    """The pictures of a label file: a published dataset's, or one of one's own.

    Args:
        rating: which of its ratings, where it has several.
        scale: ``MIN:MAX``, ``MAX:MIN`` where lower is better; left out: the published dataset's own.

    Raises:
        EvaluationError: the file cannot be read, has no such rating, or is no published one and no scale is given.
    """
    dataset = read(path, None, ({**columns, "scale": scale} if scale else dict(columns)) or None)
    if not scale and dataset.name.startswith("generic"):
        raise EvaluationError(f"{path}: give the ratings' scale, for instance --scale 1:5 (5:1 where lower is better)")
    known = list(dataset.scales)
    chosen = rating or (known[0] if len(known) == 1 else "")
    if chosen not in known:
        what = f"no rating is called {rating!r}" if rating else "there is more than one rating"
        raise EvaluationError(f"{path}, read as {dataset.name}: {what}; say --rating {' or '.join(known)}")
    ends = dataset.scales[chosen]
    found = {
        Asked(picture.image, picture.prompt): float(_turned(np.array(picture.ratings[chosen]), ends))
        for picture in dataset.pictures
        if chosen in picture.ratings
    }
    problems = tuple(f"{problem.row}: {problem.message}" for problem in dataset.problems)
    if not found:
        raise EvaluationError(f"{path}: no picture has a rating; {problems[0] if problems else 'there are no rows'}")
    return Rated(found, (ends.minimum, ends.maximum), problems)


def from_pictures(
    rated: Rated, images: Path, bundle: Path, manifest: Manifest, dimension: str, cache: Path | None = None
) -> Labelled:
    """Scores rated pictures with the bundle; those that fail are left out and listed.

    Raises:
        EvaluationError: more than half of the pictures have no score; the message has the first reason.
    """
    values, failures = raw_values(list(rated.ratings), images, bundle, manifest, dimension, cache)
    if len(failures) > _MAX_FAILED_SHARE * len(rated.ratings):
        first, why = next(iter(failures.items()))
        count = f"{len(failures)} of {len(rated.ratings)} pictures have no score"
        raise EvaluationError(f"{count}; the first, {first.image}: {why}")
    known = [asked for asked in rated.ratings if asked in values]
    return Labelled(
        np.array([values[asked] for asked in known]),
        np.array([rated.ratings[asked] for asked in known]),
        rated.bounds,
        (*rated.problems, *(f"{asked.image}: {why}" for asked, why in failures.items())),
    )


def _turned(ratings: Floats, scale: Scale) -> Floats:
    return ratings if scale.higher_is_better else scale.minimum + scale.maximum - ratings


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
