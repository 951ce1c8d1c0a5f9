"""From a table to a dataset: which column says what, and what is wrong with each row."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from critiq_evaluation.datasets.tables import Row, Table
from critiq_evaluation.datasets.types import Dataset, Problem, RatedPicture, Scale
from critiq_evaluation.errors import EvaluationError

GROUPS = ("reference", "generator", "guidance", "iterations", "resolution", "type", "enhancement", "subset")
"""What ``columns`` may name besides ``image``, ``prompt``, ``split``, ``scale`` and ratings; NAME_std is a spread."""
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Layout:
    """Columns by what they say; ``NAME|NAME`` are spellings that are tried in turn, whatever their case.

    A rating without a scale gets the range of its values, so that none can lie outside.
    """

    image: str
    ratings: Mapping[str, str]
    scales: Mapping[str, Scale] = field(default_factory=dict)
    prompt: str = ""
    spread: Mapping[str, str] = field(default_factory=dict)
    variance: Mapping[str, str] = field(default_factory=dict)
    """Columns that hold the square of the spread."""
    groups: Mapping[str, str] = field(default_factory=dict)
    split: str = ""
    needs_prompt: bool = False
    """Whether a row without a prompt is a problem, because what is rated is read against it."""
    from_name: Callable[[str], Mapping[str, str]] = field(default=lambda name: {})
    """Groups that the picture's name tells."""


def with_columns(layout: Layout, columns: Mapping[str, str] | None, table: Table) -> Layout:
    """The layout with what a caller said of it: ``image``, ``prompt``, ``split``, ``scale``, groups, spreads, ratings.

    Ratings that are named replace those of the layout. ``scale`` is ``MIN:MAX`` for all ratings, ``MAX:MIN`` where
    lower is better, and ``scale.NAME`` for one.

    Raises:
        EvaluationError: a column that the table has not, a scale that is none, or of no rating.
    """
    if not columns:
        return layout
    groups = {what: column for what, column in columns.items() if what in GROUPS}
    spread = {what.removesuffix("_std"): column for what, column in columns.items() if what.endswith("_std")}
    scales = {what: text for what, text in columns.items() if what.split(".")[0] == "scale"}
    taken = {"image", "prompt", "split", *groups, *scales, *(f"{what}_std" for what in spread)}
    ratings = {what: column for what, column in columns.items() if what not in taken} or dict(layout.ratings)
    chosen = {what: scale for what, scale in layout.scales.items() if layout.ratings.get(what) == ratings.get(what)}
    _check_said(columns, table, scales, spread, ratings)
    for what, text in scales.items():
        scale = parse_scale(f"--column {what}", text)
        for name in ratings:
            if what in ("scale", f"scale.{name}"):
                chosen[name] = scale
    kept = {what: column for what, column in {**layout.spread, **spread}.items() if what in ratings}
    variance = {what: column for what, column in layout.variance.items() if what in ratings and what not in spread}
    return replace(
        layout,
        image=columns.get("image", layout.image),
        prompt=columns.get("prompt", layout.prompt),
        split=columns.get("split", layout.split),
        ratings=ratings,
        scales=chosen,
        spread=kept,
        variance=variance,
        groups={**layout.groups, **groups},
    )


def _check_said(
    columns: Mapping[str, str],
    table: Table,
    scales: Mapping[str, str],
    spread: Mapping[str, str],
    ratings: Mapping[str, str],
) -> None:
    for what, column in columns.items():
        if what not in scales and not table.column(column):
            raise EvaluationError(f"{table.path} has no column {column!r} for {what}; it has {table.listing()}")
    for what, name in [(f"{name}_std", name) for name in spread] + [(what, what[6:]) for what in scales]:
        if name and name not in ratings:
            raise EvaluationError(f"--column {what}=...: there is no rating {name!r}; there is {', '.join(ratings)}")


def to_dataset(name: str, table: Table, layout: Layout, split: str = "") -> Dataset:
    """Reads all rows.

    Args:
        split: of all rows, where the file is one part of the dataset.

    Raises:
        EvaluationError: a column is missing, the message lists those that there are; or no row is left.
    """
    found = _Columns(table, layout)
    problems = [*table.problems, *found.problems]
    pictures: dict[str, RatedPicture] = {}
    first: dict[str, str] = {}
    for row in table.rows:
        picture, wrong = _picture(row, layout, found, split)
        if picture is not None and picture.image in pictures:
            wrong = [f"{picture.image!r} stands already in {first[picture.image]}; this row is left out"]
        elif picture is not None:
            pictures[picture.image] = picture
            first[picture.image] = row.where
        problems += [Problem(row.where, message) for message in wrong]
    if not pictures:
        why = f"; the first problem: {problems[0].row}: {problems[0].message}" if problems else ""
        raise EvaluationError(f"{table.path} has no row that can be used as {name}{why}")
    scales = {rating: layout.scales.get(rating) or _range(rating, list(pictures.values())) for rating in layout.ratings}
    return Dataset(name, scales, tuple(pictures.values()), problems=tuple(problems))


def number(text: str) -> float | None:
    """``None`` for what is no finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def normal_path(image: str) -> str:
    """A picture's path with forward slashes and without ``./``."""
    return PurePosixPath(image.replace("\\", "/")).as_posix() if image else ""


def why_bad_path(image: str) -> str:
    """Why a picture's path cannot be used; empty if it can."""
    if not image:
        return "no picture's name; the row is left out"
    path = PurePosixPath(image)
    if not path.parts or path.is_absolute() or ".." in path.parts or ":" in path.parts[0]:
        return f"{image!r} is no path below the directory of pictures; the row is left out"
    return ""


class _Columns:
    """The columns of one table that a layout speaks of; required are the picture's and the ratings'."""

    def __init__(self, table: Table, layout: Layout) -> None:
        self.image = _required(table, "image", layout.image)
        self.ratings = {what: _required(table, what, names) for what, names in layout.ratings.items()}
        self.prompt = table.column(layout.prompt)
        self.split = table.column(layout.split)
        self.problems: list[Problem] = []
        said = dict.fromkeys(row.cells[self.split] for row in table.rows) if self.split else {}
        if said and not any(value.lower() in SPLITS for value in said):
            message = f"{self.split} says {next(iter(said))!r}, never train, validation or test; it is ignored"
            self.problems.append(Problem(table.path.name, message))
            self.split = ""
        if layout.needs_prompt and not self.prompt:
            raise EvaluationError(_lacks(table, "prompt", layout.prompt))
        self.spread = _present(table, layout.spread)
        self.variance = _present(table, layout.variance)
        self.groups = _present(table, layout.groups)


def _required(table: Table, what: str, names: str) -> str:
    column = table.column(names)
    if not column:
        raise EvaluationError(_lacks(table, what, names))
    return column


def _lacks(table: Table, what: str, names: str) -> str:
    wanted = " or ".join(repr(name) for name in names.split("|") if name) or "(none was named)"
    return (
        f"{table.path} has no column for {what}: expected {wanted}, found {table.listing()}; "
        f"say which it is with --column {what}=COLUMN"
    )


def _present(table: Table, columns: Mapping[str, str]) -> dict[str, str]:
    return {what: column for what, names in columns.items() if (column := table.column(names))}


def _picture(row: Row, layout: Layout, columns: _Columns, split: str) -> tuple[RatedPicture | None, list[str]]:
    """The picture, ``None`` if the row is left out, and what is wrong with the row."""
    image = normal_path(row.cells[columns.image])
    if wrong := why_bad_path(image):
        return None, [wrong]
    problems: list[str] = []
    ratings = {}
    for what, column in columns.ratings.items():
        value, wrong = _rating(column, row.cells[column], layout.scales.get(what))
        if value is not None:
            ratings[what] = value
        else:
            problems.append(f"{image}: {wrong}; the rating {what} is left out")
    if not ratings:
        return None, [*problems, f"{image}: no rating is left; the row is left out"]
    prompt = row.cells[columns.prompt] if columns.prompt else ""
    if layout.needs_prompt and not prompt:
        problems.append(f"{image}: no prompt, against which it was rated; scores that need one will be missing")
    spread = {}
    for squared, chosen in ((False, columns.spread), (True, columns.variance)):
        for what, column in chosen.items():
            deviation = number(row.cells[column])
            if deviation is None or deviation < 0:
                problems.append(f"{image}: {column} is {row.cells[column]!r}, no spread; the spread is left out")
            elif what in ratings:
                spread[what] = math.sqrt(deviation) if squared else deviation
    groups = {what: row.cells[column] for what, column in columns.groups.items() if row.cells[column]}
    groups = {**layout.from_name(image), **groups}
    if columns.split:
        said = row.cells[columns.split]
        split = SPLITS.get(said.lower(), split)
        if said.lower() not in SPLITS:
            problems.append(f"{image}: {columns.split} is {said!r}, expected train, validation or test; in no part")
    return RatedPicture(image, ratings, prompt, spread, groups, split), problems


def _rating(column: str, text: str, scale: Scale | None) -> tuple[float | None, str]:
    value = number(text)
    if value is None:
        return None, f"{column} is {text!r}, no finite number"
    if scale is not None and not scale.minimum <= value <= scale.maximum:
        return None, f"{column} is {text}, outside its scale {scale.minimum:g} to {scale.maximum:g}"
    return value, ""


def parse_scale(what: str, text: str) -> Scale:
    """``MIN:MAX``, or ``MAX:MIN`` where lower is better; ``what`` is named in the message of a bad one."""
    ends = [number(end) for end in text.split(":")]
    if len(ends) != 2 or ends[0] is None or ends[1] is None or ends[0] == ends[1]:
        raise EvaluationError(f"{what}={text}: expected MIN:MAX, for instance 1:5, or 5:1 where lower is better")
    return Scale(min(ends[0], ends[1]), max(ends[0], ends[1]), higher_is_better=ends[0] < ends[1])


def _range(rating: str, pictures: list[RatedPicture]) -> Scale:
    values = [picture.ratings[rating] for picture in pictures if rating in picture.ratings]
    return Scale(min(values, default=0.0), max(values, default=0.0))
