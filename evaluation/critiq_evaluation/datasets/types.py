"""What every dataset becomes: rated pictures, preferences, and what is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Scale:
    """The scale of a rating. A rating outside it is a problem that is reported."""

    minimum: float
    maximum: float
    higher_is_better: bool = True


@dataclass(frozen=True)
class RatedPicture:
    """One picture with what people said of it."""

    image: str
    """Path below the directory of pictures, with forward slashes; unique within a dataset."""
    ratings: Mapping[str, float]
    """Mean opinion score by rated dimension, for instance ``quality``, ``authenticity``, ``alignment``; finite."""
    prompt: str = ""
    spread: Mapping[str, float] = field(default_factory=dict)
    """Standard deviation of the opinions by rated dimension, on the scale that the dataset states for it."""
    groups: Mapping[str, str] = field(default_factory=dict)
    """What results are broken down by, for instance ``generator``, ``subset``, ``enhancement``, ``reference``."""
    split: str = ""
    """The official split, ``train``, ``validation`` or ``test``; empty where the dataset has none."""


@dataclass(frozen=True)
class Preference:
    """Of two pictures of one prompt, the one that people prefer."""

    better: str
    worse: str
    prompt: str = ""
    groups: Mapping[str, str] = field(default_factory=dict)
    split: str = ""


@dataclass(frozen=True)
class Problem:
    """Something wrong with one row of a dataset: it is reported, never skipped in silence."""

    row: str
    """Where: file and line, or the picture's name."""
    message: str
    """What was wrong, with which value, and what was done about it."""


@dataclass(frozen=True)
class Dataset:
    """A human-rated dataset as read from its published files."""

    name: str
    scales: Mapping[str, Scale]
    """The scale of each rated dimension."""
    pictures: tuple[RatedPicture, ...] = ()
    preferences: tuple[Preference, ...] = ()
    problems: tuple[Problem, ...] = ()
