"""Raw ratings: who gave which picture how much, from tables with a row for each rating or a column for each rater."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from critiq_evaluation.datasets.layouts import number
from critiq_evaluation.datasets.published import IMAGE
from critiq_evaluation.datasets.tables import Row, Table, read_table
from critiq_evaluation.datasets.types import Problem, Scale
from critiq_evaluation.errors import EvaluationError

Floats = NDArray[np.float64]

_NAMES = {
    "image": IMAGE,
    "rater": "rater|subject|viewer|observer|annotator|participant|user|worker|rater_id|subject_id|user_id",
    "score": "score|rating|opinion|value|raw_score",
    "session": "session|group",
}


@dataclass(frozen=True)
class RawRatings:
    """``scores`` is ``[raters, pictures]``, NaN where there is no rating; ``sessions`` is ``[pictures]``."""

    raters: tuple[str, ...]
    pictures: tuple[str, ...]
    scores: Floats
    sessions: tuple[str, ...] = ()
    """The session in which each picture was rated; empty: there was one."""
    problems: tuple[Problem, ...] = ()


def read_ratings(path: Path, columns: Mapping[str, str] | None = None, scale: Scale | None = None) -> RawRatings:
    """Reads raw ratings: long form if there is a column of raters, else wide form.

    Args:
        columns: which column is ``image``, ``rater``, ``score``, ``session``; default: by usual names.
        scale: ratings outside it are problems.

    Raises:
        EvaluationError: the file cannot be used; the message names what was expected.
    """
    table = read_table(path)
    names = {**_NAMES, **(columns or {})}
    for what, name in (columns or {}).items():
        if not table.column(name):
            raise EvaluationError(f"{path} has no column {name!r} for {what}; it has {table.listing()}")
    found = {what: table.column(name) for what, name in names.items()}
    if not found["image"]:
        raise EvaluationError(f"{path} has no column for pictures; it has {table.listing()}: say --column image=COLUMN")
    cells = _Cells(scale, list(table.problems))
    if found["rater"]:
        _read_long(table, found, cells)
    else:
        _read_wide(table, found, cells)
    return cells.ratings(path)


class _Cells:
    """Ratings as they come."""

    def __init__(self, scale: Scale | None, problems: list[Problem]) -> None:
        self._scale = scale
        self._problems = problems
        self._scores: dict[tuple[str, str], float] = {}
        self._raters: dict[str, None] = {}
        self._sessions: dict[str, str] = {}

    def problem(self, where: str, message: str) -> None:
        self._problems.append(Problem(where, message))

    def picture(self, where: str, picture: str, session: str) -> None:
        if self._sessions.setdefault(picture, session) != session:
            self.problem(where, f"{picture} was in session {self._sessions[picture]!r} before; {session!r} is ignored")

    def add(self, where: str, rater: str, picture: str, text: str) -> None:
        self._raters.setdefault(rater)
        value = number(text)
        scale = self._scale
        if value is None:
            self.problem(where, f"{rater} gave {picture} {text!r}, no finite number; the rating is left out")
        elif scale is not None and not scale.minimum <= value <= scale.maximum:
            limits = f"{scale.minimum:g} to {scale.maximum:g}"
            self.problem(where, f"{rater} gave {picture} {text}, outside {limits}; the rating is left out")
        elif (rater, picture) in self._scores:
            self.problem(where, f"{rater} rated {picture} before; the first rating counts")
        else:
            self._scores[rater, picture] = value

    def ratings(self, path: Path) -> RawRatings:
        if not self._scores:
            why = f"; {self._problems[0].row}: {self._problems[0].message}" if self._problems else ""
            raise EvaluationError(f"{path} has no rating that can be used{why}")
        raters, pictures = list(self._raters), list(self._sessions)
        row = {rater: i for i, rater in enumerate(raters)}
        column = {picture: i for i, picture in enumerate(pictures)}
        scores = np.full((len(raters), len(pictures)), np.nan)
        for (rater, picture), value in self._scores.items():
            scores[row[rater], column[picture]] = value
        sessions = tuple(self._sessions.values()) if any(self._sessions.values()) else ()
        return RawRatings(tuple(raters), tuple(pictures), scores, sessions, tuple(self._problems))


def _read_long(table: Table, found: Mapping[str, str], cells: _Cells) -> None:
    if not found["score"]:
        raise EvaluationError(
            f"{table.path} has a column of raters and none of scores; it has {table.listing()}: "
            "say --column score=COLUMN"
        )
    for row in table.rows:
        picture = _picture(row, found, cells)
        rater = row.cells[found["rater"]]
        if picture and not rater:
            cells.problem(row.where, f"no rater of {picture}; the rating is left out")
        elif picture:
            cells.add(row.where, rater, picture, row.cells[found["score"]])


def _read_wide(table: Table, found: Mapping[str, str], cells: _Cells) -> None:
    raters = [name for name in table.columns if name not in (found["image"], found["session"])]
    if len(raters) < 2:
        raise EvaluationError(
            f"{table.path} has neither a column of raters (long form) nor one for each rater (wide form); it has "
            f"{table.listing()}"
        )
    seen: set[str] = set()
    for row in table.rows:
        picture = _picture(row, found, cells)
        if picture in seen:
            cells.problem(row.where, f"{picture} has a row already; this one is left out")
        elif picture:
            seen.add(picture)
            for rater in raters:
                if row.cells[rater]:
                    cells.add(row.where, rater, picture, row.cells[rater])


def _picture(row: Row, found: Mapping[str, str], cells: _Cells) -> str:
    picture = row.cells[found["image"]]
    if not picture:
        cells.problem(row.where, "no picture's name; the row is left out")
    else:
        cells.picture(row.where, picture, row.cells[found["session"]] if found["session"] else "")
    return picture
