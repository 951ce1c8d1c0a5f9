"""Rows -> rated pictures: every row either becomes a picture or is reported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath

from critiq_evaluation.datasets.types import Dataset, Preference, Problem, RatedPicture, Scale
from critiq_evaluation.errors import EvaluationError


class Collector:
    """Gathers the pictures of one dataset, and what is wrong with its rows."""

    def __init__(self, name: str, scales: Mapping[str, Scale]) -> None:
        self.name = name
        self.scales = scales
        self._pictures: dict[str, RatedPicture] = {}
        self._preferences: list[Preference] = []
        self._problems: list[Problem] = []

    def picture(
        self,
        place: str,
        image: str,
        ratings: Mapping[str, str | float],
        *,
        prompt: str = "",
        spread: Mapping[str, str | float] | None = None,
        groups: Mapping[str, str] | None = None,
        split: str = "",
    ) -> None:
        """Takes one picture on, or reports why not: no name, named before, no rating left.

        A rating that is no number, or outside its scale, is reported and left out.
        """
        image = normal_path(image)
        if not image:
            self.problem(place, "no picture is named; the row was left out")
            return
        if image in self._pictures:
            self.problem(place, f"{image!r} stands in an earlier row too; the first one counts")
            return
        kept = {name: value for name in ratings if (value := self._rating(place, name, ratings[name])) is not None}
        if not kept:
            self.problem(place, f"{image!r} has no usable rating; the row was left out")
            return
        deviations = {}
        for name, given in (spread or {}).items():
            value = as_number(given)
            if value is not None and value >= 0:
                deviations[name] = value
            elif str(given).strip():
                self.problem(place, f"the spread of {name} is {given!r}, no number of 0 or more; it was left out")
        named = {name: group for name, group in (groups or {}).items() if group}
        self._pictures[image] = RatedPicture(image, kept, prompt.strip(), deviations, named, split)

    def preference(
        self, place: str, better: str, worse: str, prompt: str, groups: Mapping[str, str] | None = None, split: str = ""
    ) -> None:
        """Takes one preference on, or reports why not."""
        first, second = normal_path(better), normal_path(worse)
        if not first or not second or first == second:
            self.problem(place, f"the preference of {better!r} over {worse!r} does not name two pictures; left out")
            return
        self._preferences.append(Preference(first, second, prompt.strip(), groups or {}, split))

    def problem(self, place: str, message: str) -> None:
        """Reports something."""
        self._problems.append(Problem(place, message))

    def dataset(self) -> Dataset:
        """What was gathered. Raises ``EvaluationError`` if that is nothing."""
        if not self._pictures and not self._preferences:
            first = (
                f"; the first problem: {self._problems[0].row}: {self._problems[0].message}" if self._problems else ""
            )
            raise EvaluationError(f"{self.name}: no row could be used{first}")
        return Dataset(
            self.name, self.scales, tuple(self._pictures.values()), tuple(self._preferences), tuple(self._problems)
        )

    def _rating(self, place: str, name: str, given: str | float) -> float | None:
        value, scale = as_number(given), self.scales[name]
        if value is None:
            self.problem(place, f"the rating {name} is {str(given)!r}, not a number; it was left out")
        elif not scale.minimum <= value <= scale.maximum:
            limits = f"{scale.minimum:g} to {scale.maximum:g}"
            self.problem(place, f"the rating {name} is {value:g}, outside its scale of {limits}; it was left out")
        else:
            return value
        return None


def as_number(given: str | float) -> float | None:
    """The finite number that ``given`` is, else ``None``."""
    try:
        value = float(given)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def normal_path(given: str) -> str:
    """A path below the directory of pictures with forward slashes; ``./`` in front goes."""
    path = given.strip().replace("\\", "/")
    return "" if not path else str(PurePosixPath(path))
