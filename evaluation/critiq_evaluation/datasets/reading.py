"""A dataset's name, or its label file, -> what people said of its pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from critiq_evaluation.datasets import preferences, published
from critiq_evaluation.datasets.recognising import looks_like
from critiq_evaluation.datasets.types import Dataset, Problem
from critiq_evaluation.errors import EvaluationError


@dataclass(frozen=True)
class Reader:
    """How one layout is read: the labels and the caller's columns to a dataset."""

    summary: str
    read: Callable[[Path, Mapping[str, str]], Dataset]


def _reader(function: Callable[[Path, Mapping[str, str]], Dataset]) -> Reader:
    first = (function.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    return Reader(first.replace("``", "`"), function)


READERS: Mapping[str, Reader] = {
    "agiqa-1k": _reader(published.agiqa_1k),
    "agiqa-3k": _reader(published.agiqa_3k),
    "aigiqa-20k": _reader(published.aigiqa_20k),
    "aigciqa2023": _reader(published.aigciqa2023),
    "aigciqa2023+": _reader(published.aigciqa2023_plus),
    "au-iqa": _reader(published.au_iqa),
    "koniq-10k": _reader(published.koniq_10k),
    "kadid-10k": _reader(published.kadid_10k),
    "spaq": _reader(published.spaq),
    "pyiqa": _reader(published.pyiqa_meta),
    "q-align": _reader(published.q_align),
    "hpd-v2": _reader(preferences.hpd_v2),
    "imagereward": _reader(preferences.image_reward),
    "pick-a-pic": _reader(preferences.pick_a_pic),
    "table": _reader(published.table_of_ones_own),
}


def read(name_or_file: str | Path, labels: Path | None = None, columns: Mapping[str, str] | None = None) -> Dataset:
    """Reads a dataset.

    Args:
        name_or_file: a name of ``READERS`` (any case; ``aigcqa-20k`` is the same as ``aigiqa-20k``), or the label file
            itself, which is then recognised by its columns; what it was taken for is the first of its ``problems``.
        labels: the label file or directory, where a name was given.
        columns: which column holds what, for tables of one's own; see :func:`published.table_of_ones_own`.

    Raises:
        EvaluationError: no such dataset, no such file, or a file in another layout; the message says what was expected.
    """
    name = str(name_or_file).lower().replace("_", "-").replace("aigcqa-20k", "aigiqa-20k")
    if name in READERS:
        if labels is None:
            raise EvaluationError(f"where are the labels of {name}? Give its file or directory (--labels)")
        if not labels.exists():
            raise EvaluationError(f"{labels} does not exist")
        return READERS[name].read(labels, columns or {})
    path = Path(name_or_file)
    if labels is not None or not path.exists():
        known = ", ".join(READERS)
        raise EvaluationError(f"{str(name_or_file)!r} is neither a dataset that is known ({known}) nor a file")
    taken = "table" if columns else looks_like(path) or "table"
    dataset = READERS[taken].read(path, columns or {})
    note = Problem(path.name, f"taken for the layout {taken}; name the dataset if that is wrong")
    return replace(dataset, problems=(note, *dataset.problems))


def check_pictures(dataset: Dataset, directory: Path) -> Dataset:
    """The dataset without the pictures that ``directory`` lacks, each of which is added to its problems.

    Raises:
        EvaluationError: there is no such directory, or none of the pictures is in it.
    """
    if not directory.is_dir():
        raise EvaluationError(f"{directory} is not a directory of pictures")
    named = [picture.image for picture in dataset.pictures]
    named += [image for pair in dataset.preferences for image in (pair.better, pair.worse)]
    missing = {image for image in dict.fromkeys(named) if not (directory / image).is_file()}
    if missing and missing == set(named):
        raise EvaluationError(f"{directory} holds none of the pictures of {dataset.name}, for instance {named[0]!r}")
    problems = [
        Problem(image, f"there is no such picture in {directory}; it was left out") for image in sorted(missing)
    ]
    return replace(
        dataset,
        pictures=tuple(picture for picture in dataset.pictures if picture.image not in missing),
        preferences=tuple(pair for pair in dataset.preferences if not {pair.better, pair.worse} & missing),
        problems=(*dataset.problems, *problems),
    )
