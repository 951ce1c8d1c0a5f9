"""Which pictures of a dataset a figure is about: splits as the papers draw them, and the sub-sets that they report.

Served models are not trained here, so of a split only the test pictures count.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from PIL import Image

from critiq_evaluation.datasets.types import Dataset, RatedPicture
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.statistics.arrays import MIN_PICTURES

_Thing = TypeVar("_Thing")

TEST_FROM = 0.8
"""Where the test pictures of a 7:1:2 split begin, as a share of the shuffled rows."""
_MOST_KINDS = 40
RANDOM_PICTURES = 1600
"""Of AU-IQA's table 2."""


@dataclass(frozen=True)
class Part:
    """Pictures that one figure is about."""

    name: str
    pictures: tuple[RatedPicture, ...]


@dataclass(frozen=True)
class Plan:
    """What a protocol makes of a dataset.

    Attributes:
        rule: how the parts were drawn, in one sentence, for the report.
        parts: a row of the results each.
        repeats: test sets of equal standing, of which median and spread are reported.
        notes: what could not be done as published.
    """

    protocol: str
    rule: str
    parts: tuple[Part, ...] = ()
    repeats: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """``repeats`` splits with the seeds ``seed``, ``seed + 1``, ...; ``images`` is the directory of pictures."""

    repeats: int = 10
    seed: int = 0
    images: Path | None = None


@dataclass(frozen=True)
class Protocol:
    """``plan`` raises :class:`EvaluationError` where the dataset lacks what the protocol needs."""

    name: str
    summary: str
    plan: Callable[[Dataset, Options], Plan] = field(repr=False)


def plan(name: str, dataset: Dataset, options: Options | None = None) -> Plan:
    """Applies a protocol by name.

    Raises:
        EvaluationError: no such protocol, or the dataset lacks what it needs; the message says which.
    """
    if name not in PROTOCOLS:
        raise EvaluationError(f"no protocol is called {name!r}; known are {', '.join(PROTOCOLS)}")
    if not dataset.pictures:
        raise EvaluationError(f"the dataset {dataset.name} has no rated pictures; protocols need them")
    return PROTOCOLS[name].plan(dataset, options or Options())


def by_group(dataset: Dataset) -> dict[str, tuple[Part, ...]]:
    """The pictures by each group that the dataset names: generator, sub-set, ...

    Left out: groups of fewer than 2 or more than 40 kinds, and those with fewer than 3 pictures a kind on average.
    """
    names = dict.fromkeys(name for picture in dataset.pictures for name in picture.groups)
    found = {}
    for name in names:
        parts = _parts(dataset.pictures, lambda picture, name=name: picture.groups.get(name, ""))  # type: ignore[misc]
        if 1 < len(parts) <= min(_MOST_KINDS, len(dataset.pictures) // MIN_PICTURES):
            found[name] = parts
    return found


def _whole(dataset: Dataset, options: Options) -> Plan:
    return Plan("all", f"all {len(dataset.pictures)} pictures", (Part("all", dataset.pictures),))


def _random(dataset: Dataset, options: Options) -> Plan:
    repeats = tuple(
        Part(f"seed {seed}", _last_fifth(dataset.pictures, seed))
        for seed in range(options.seed, options.seed + options.repeats)
    )
    rule = f"random 7:1:2 splits by picture, {_seeds(options)}; the test fifth of each"
    return Plan("random", rule, repeats=repeats)


def _content(dataset: Dataset, options: Options) -> Plan:
    by_reference = all("reference" in picture.groups for picture in dataset.pictures)
    what = "reference" if by_reference else "prompt"
    contents = _parts(dataset.pictures, lambda picture: picture.groups["reference"] if by_reference else picture.prompt)
    if len(contents) < 5:
        raise EvaluationError(
            f"the dataset {dataset.name} has {len(contents)} different {what}s; a split by content needs 5 or more"
        )
    repeats = []
    for seed in range(options.seed, options.seed + options.repeats):
        test = _last_fifth(contents, seed)
        repeats.append(Part(f"seed {seed}", tuple(picture for part in test for picture in part.pictures)))
    rule = (
        f"random 7:1:2 splits by {what}, of which there are {len(contents)}, {_seeds(options)}; no {what} is in two "
        "parts; the test fifth of each"
    )
    return Plan("content", rule, repeats=tuple(repeats))


def _official(dataset: Dataset, options: Options) -> Plan:
    parts = _parts(dataset.pictures, lambda picture: picture.split)
    if not parts:
        raise EvaluationError(
            f"the dataset {dataset.name} comes without an official split; use random or content, or all"
        )
    order = ("test", "validation", "train")
    ordered = sorted(parts, key=lambda part: order.index(part.name) if part.name in order else len(order))
    rule = "the official split: " + ", ".join(f"{part.name} {len(part.pictures)}" for part in ordered)
    without = sum(not picture.split for picture in dataset.pictures)
    notes = (f"{without} pictures stand in no part of the official split",) if without else ()
    return Plan("official", rule, tuple(ordered), notes=notes)


def _ma_agiqa(dataset: Dataset, options: Options) -> Plan:
    """As in MA-AGIQA's ``dataset_general``: rows in the file's order, ``random.seed(20)``, shuffle, 70/10/20."""
    test = Part("test", _last_fifth(dataset.pictures, 20))
    notes = [
        "MA-AGIQA's own script shuffles the test set and drops its last incomplete batch: its figures are of fewer "
        "pictures, which nobody can name"
    ]
    if dataset.problems:
        notes.append(
            f"the label file has {len(dataset.problems)} problem(s); each row that is left out moves the split away "
            "from the published one"
        )
    if len(dataset.pictures) == 20_000:
        notes.append("for AIGIQA-20K, MA-AGIQA splits the 14,000 rows of info_train.csv alone: give that file")
    rule = "MA-AGIQA's split: rows in the order of the file, random.seed(20), shuffle, 70/10/20; the test fifth"
    return Plan("ma-agiqa", rule, (test,), notes=tuple(notes))


_AIGIQA_SUBSETS = (
    ("default guidance", "guidance", "default"),
    ("default iterations", "iterations", "default"),
    ("default resolution", "resolution", "default"),
    ("wrong guidance", "guidance", "wrong"),
    ("limited iterations", "iterations", "limited"),
    ("rectangular resolution", "resolution", "rectangular"),
)


def _aigiqa20k(dataset: Dataset, options: Options) -> Plan:
    """AIGIQA-20K, table 3. Resolution is seen from the pictures; the published label files tell nothing of the rest."""
    settings: dict[str, Mapping[str, str]] = {picture.image: picture.groups for picture in dataset.pictures}
    notes = []
    if not all("resolution" in groups for groups in settings.values()):
        shapes, unreadable = _shapes(dataset.pictures, options.images)
        settings = {image: {**groups, **shapes.get(image, {})} for image, groups in settings.items()}
        if unreadable:
            notes.append(f"the resolution of {unreadable} pictures is unknown, as they cannot be read")
    parts = [Part("all", dataset.pictures)]
    for name, setting, value in _AIGIQA_SUBSETS:
        chosen = tuple(picture for picture in dataset.pictures if settings[picture.image].get(setting) == value)
        if chosen:
            parts.append(Part(name, chosen))
        else:
            notes.append(
                f"{name}: no picture is known to be of it. The published files do not say it; give a column "
                f"{setting!r} with the value {value!r}"
            )
    rule = "AIGIQA-20K's sub-sets by guidance, iterations and resolution (its table 3), beside the whole"
    return Plan("aigiqa20k", rule, tuple(parts), notes=tuple(notes))


def _au_iqa(dataset: Dataset, options: Options) -> Plan:
    """AU-IQA, tables 1 and 2."""
    lacking = [name for name in ("type", "enhancement") if not any(name in p.groups for p in dataset.pictures)]
    if lacking:
        raise EvaluationError(
            f"the dataset {dataset.name} does not say the {' and the '.join(lacking)} of its pictures, which AU-IQA's "
            "protocol needs; give those columns"
        )
    cells = _parts(dataset.pictures, lambda picture: " ".join(_type_and_model(picture)))
    types = _parts(dataset.pictures, lambda picture: picture.groups.get("type", ""))
    parts = [*cells, *types]
    notes = []
    if len(dataset.pictures) > RANDOM_PICTURES:
        chosen = random.Random(options.seed).sample(dataset.pictures, RANDOM_PICTURES)
        parts.append(Part(f"random-{RANDOM_PICTURES}", tuple(chosen)))
        notes.append(
            f"which {RANDOM_PICTURES} pictures the paper drew is not published; these are of seed {options.seed}"
        )
    else:
        notes.append(f"no random-{RANDOM_PICTURES}: the dataset has {len(dataset.pictures)} pictures")
    parts.append(Part("all", dataset.pictures))
    rule = "AU-IQA's tables: per enhancement model within a type, per type, random pictures, and all"
    return Plan("au-iqa", rule, tuple(parts), notes=tuple(notes))


PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        Protocol("all", "all pictures at once", _whole),
        Protocol("random", "random 7:1:2 splits by picture; median and spread over the test fifths", _random),
        Protocol("content", "the same by reference picture or, where there is none, by prompt", _content),
        Protocol("official", "the split that the dataset comes with", _official),
        Protocol("ma-agiqa", "MA-AGIQA's one split: random.seed(20), shuffle, 70/10/20", _ma_agiqa),
        Protocol("aigiqa20k", "AIGIQA-20K's sub-sets by guidance, iterations and resolution", _aigiqa20k),
        Protocol("au-iqa", "AU-IQA's tables: per enhancement model, per type, random-1600, all", _au_iqa),
    )
}


def _last_fifth(things: Sequence[_Thing], seed: int) -> tuple[_Thing, ...]:
    order = list(range(len(things)))
    random.Random(seed).shuffle(order)
    return tuple(things[index] for index in order[int(len(things) * TEST_FROM) :])


def _parts(pictures: Iterable[RatedPicture], key: Callable[[RatedPicture], str]) -> tuple[Part, ...]:
    """The pictures by key, in order of first appearance; without those whose key is empty."""
    members: dict[str, list[RatedPicture]] = {}
    for picture in pictures:
        if name := key(picture):
            members.setdefault(name, []).append(picture)
    return tuple(Part(name, tuple(chosen)) for name, chosen in members.items())


def _seeds(options: Options) -> str:
    if options.repeats == 1:
        return f"seed {options.seed}"
    return f"{options.repeats} of them with the seeds {options.seed} to {options.seed + options.repeats - 1}"


def _type_and_model(picture: RatedPicture) -> tuple[str, ...]:
    return tuple(picture.groups[name] for name in ("type", "enhancement") if name in picture.groups)


def _shapes(pictures: Sequence[RatedPicture], images: Path | None) -> tuple[dict[str, dict[str, str]], int]:
    """``resolution`` by picture, from the files' headers, and how many could not be read."""
    found = {}
    for picture in pictures:
        try:
            with Image.open((images or Path()) / picture.image) as opened:
                square = opened.width == opened.height
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            continue
        found[picture.image] = {"resolution": "default" if square else "rectangular"}
    return found, len(pictures) - len(found)
