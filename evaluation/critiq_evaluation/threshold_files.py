"""Accept/reject labels with scores, from files or a server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from critiq.types import Scale, Score
from critiq_evaluation.calibration.labels import read_rows
from critiq_evaluation.datasets.tables import read_table
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.scoring import Asked, ModelScores
from critiq_evaluation.statistics.arrays import Floats
from critiq_server.scoring.policies import value_on
from critiq_server.scoring.policy_trial import RecordingError, read_recording

_ACCEPT = frozenset({"accept", "accepted", "1", "true", "yes", "pass", "good", "keep"})
_REJECT = frozenset({"reject", "rejected", "0", "false", "no", "fail", "bad", "block"})


@dataclass(frozen=True)
class Decided:
    """``values`` and ``accepted`` ``[count]`` that belong together, and what was done about the rest."""

    values: Floats
    accepted: NDArray[np.bool_]
    notes: tuple[str, ...]


def read_labels(path: Path, columns: Mapping[str, str]) -> tuple[dict[Asked, bool], tuple[str, ...]]:
    """What people decided, by picture, and notes on pictures that were labelled more than once.

    The majority counts; a picture with as many accepting as rejecting labels is left out.

    Raises:
        EvaluationError: the file cannot be used, or a label is neither accept nor reject.
    """
    found: dict[Asked, list[bool]] = {}
    for row in read_rows(path, ("image", "label"), columns, optional=("prompt",)):
        label = row.cells["label"].strip().lower()
        if label not in _ACCEPT | _REJECT:
            raise EvaluationError(
                f"{row.place}: the label is {row.cells['label']!r}; accept or reject is due (or 1 and 0, yes and no)"
            )
        asked = Asked(row.cells["image"], row.cells.get("prompt", ""))
        found.setdefault(asked, []).append(label in _ACCEPT)
    torn = {asked: votes for asked, votes in found.items() if len(set(votes)) > 1}
    halves = [asked for asked, votes in torn.items() if 2 * sum(votes) == len(votes)]
    notes = []
    if torn:
        first = next(iter(torn))
        notes.append(
            f"{len(torn)} picture(s) with contradictory labels ({first.image} first): the majority counts, and "
            f"{len(halves)} without one are left out"
        )
    again = sum(len(votes) > 1 for votes in found.values()) - len(torn)
    if again:
        notes.append(f"{again} picture(s) labelled more than once, each time alike: counted once")
    kept = {asked: 2 * sum(votes) > len(votes) for asked, votes in found.items() if asked not in halves}
    if not kept:
        raise EvaluationError(f"{path}: every picture's labels contradict each other")
    return kept, tuple(notes)


def with_scores(
    labels: Mapping[Asked, bool], path: Path, dimension: str, scale: Scale, columns: Mapping[str, str]
) -> Decided:
    """Joined with what ``critiq score`` wrote (``.jsonl``, ``.csv``), or another table with a column ``score``.

    Pictures are matched by their path, else by their file name where that is unique.
    """
    recorded = _of_recording(path, dimension, scale) if path.suffix == ".jsonl" else None
    values = recorded if recorded is not None else _of_table(path, dimension, scale, columns)
    short: dict[str, list[str]] = {}
    for file in values:
        short.setdefault(PurePosixPath(file).name, []).append(file)

    def value(asked: Asked) -> float | None:
        alike = short.get(PurePosixPath(asked.image).name, [])
        name = asked.image if asked.image in values else alike[0] if len(alike) == 1 else ""
        return values.get(name)

    return _joined(labels, {asked: found for asked in labels if (found := value(asked)) is not None}, {}, str(path))


def with_answers(labels: Mapping[Asked, bool], answers: ModelScores, dimension: str, scale: Scale) -> Decided:
    """Joined with a server's answers; higher is better in ``values``, as raw ones are negated where need be."""
    if scale == "percentile":
        raise EvaluationError("--on percentile: only with --scores, as `critiq score --output` writes them")
    return _joined(labels, answers.values(dimension, scale), answers.failures(dimension, scale), answers.name)


def _joined(
    labels: Mapping[Asked, bool], values: Mapping[Asked, float], why: Mapping[Asked, str], source: str
) -> Decided:
    known = [asked for asked in labels if asked in values]
    missing = [asked for asked in labels if asked not in values]
    notes = []
    if missing:
        reason = why.get(missing[0], "no such picture")
        what = f"{len(missing)} of {len(labels)} labelled pictures have no value in {source}"
        message = f"{what}; the first, {missing[0].image}: {reason}"
        if not known:
            raise EvaluationError(message)
        notes.append(f"left out: {message}")
    return Decided(
        np.array([values[asked] for asked in known]), np.array([labels[asked] for asked in known]), tuple(notes)
    )


def _of_recording(path: Path, dimension: str, scale: Scale) -> dict[str, float]:
    found: dict[str, float] = {}
    dimensions: set[str] = set()
    try:
        for entry in read_recording(path):
            scores: Sequence[Score] = entry.result.scores if entry.result is not None else ()
            dimensions |= {score.dimension for score in scores}
            for score in scores:
                value = value_on(score, scale)
                if score.dimension == dimension and value is not None:
                    _put(found, entry.file, value, path)
    except RecordingError as error:
        raise EvaluationError(str(error)) from error
    if not found:
        raise EvaluationError(
            f"{path}: no picture has a {scale} value of {dimension!r}; its dimensions are "
            f"{', '.join(sorted(dimensions)) or 'none'}"
        )
    return found


def _of_table(path: Path, dimension: str, scale: Scale, columns: Mapping[str, str]) -> dict[str, float]:
    column = read_table(path).column(f"{dimension}_{scale}")
    wanted = {"score": column, **columns} if column else columns
    rows = read_rows(path, ("image", "score"), wanted)
    found: dict[str, float] = {}
    for row in rows:
        if row.cells["score"]:  # empty: the picture could not be scored
            _put(found, row.cells["image"], row.number("score"), path)
    return found


def _put(found: dict[str, float], file: str, value: float, path: Path) -> None:
    if found.setdefault(file, value) != value:
        raise EvaluationError(
            f"{path}: {file} has the values {found[file]:g} and {value:g}; give each picture one row, of one prompt"
        )
