"""Preference pairs: which picture of one prompt people like better, in the forms in which they are published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from critiq_evaluation.datasets.layouts import normal_path, number, why_bad_path
from critiq_evaluation.datasets.tables import read_objects, read_table
from critiq_evaluation.datasets.types import Dataset, Preference, Problem
from critiq_evaluation.errors import EvaluationError


class _Pairs:
    """Pairs as they come; what is wrong with an entry is kept beside them."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self.path = name, path
        self.pairs: dict[tuple[str, str, str], Preference] = {}
        self.problems: list[Problem] = []
        self.ties = 0

    def problem(self, where: str, message: str) -> None:
        self.problems.append(Problem(where, message))

    def add(self, where: str, better: str, worse: str, prompt: str) -> None:
        wrong = why_bad_path(better) or why_bad_path(worse)
        if better == worse and not wrong:
            wrong = f"{better!r} is compared with itself; the pair is left out"
        if wrong:
            self.problem(where, wrong)
            return
        if not prompt:
            self.problem(
                where, f"{better}: no prompt, for which it was preferred; scores that need one will be missing"
            )
        self.pairs.setdefault((better, worse, prompt), Preference(better, worse, prompt))

    def ranked(self, where: str, images: Sequence[str], ranks: Sequence[float], prompt: str) -> None:
        """All pairs of a ranking; rank 1 is the best."""
        for (first, one), (second, two) in combinations(zip(images, ranks, strict=True), 2):
            if one == two:
                self.ties += 1
            else:
                better, worse = (first, second) if one < two else (second, first)
                self.add(where, better, worse, prompt)

    def dataset(self) -> Dataset:
        problems = list(self.problems)
        if self.ties:
            message = f"{self.ties} pairs are ties: people preferred neither; they are left out"
            problems.append(Problem(self.path.name, message))
        if not self.pairs:
            why = f"; {problems[0].row}: {problems[0].message}" if problems else ""
            raise EvaluationError(f"{self.path} has no preference that can be used{why}")
        return Dataset(self.name, {}, preferences=tuple(self.pairs.values()), problems=tuple(problems))


def hpd_v2(labels: Path, columns: Mapping[str, str] | None) -> Dataset:
    """HPD v2: ``train.json`` (``human_preference``, 1 for the preferred, ``file_path``), ``test.json`` (``rank``)."""
    _no_columns("hpdv2", columns)
    pairs = _Pairs("hpdv2", labels)
    for where, entry in read_objects(labels):
        images = _strings(entry, ("image_path", "file_path"))
        ranks = _numbers(entry, "rank")
        if ranks is None and (preferred := _numbers(entry, "human_preference")) is not None:
            ranks = [-value for value in preferred]
        _add_ranking(pairs, where, images, ranks, entry, "image_path (or file_path) and rank (or human_preference)")
    return pairs.dataset()


def image_reward(labels: Path, columns: Mapping[str, str] | None) -> Dataset:
    """ImageReward's ``test.json``: ``generations`` and their ``ranking``, 1 is the best, with ties."""
    _no_columns("imagereward", columns)
    pairs = _Pairs("imagereward", labels)
    for where, entry in read_objects(labels):
        images = _strings(entry, ("generations",))
        _add_ranking(pairs, where, images, _numbers(entry, "ranking"), entry, "generations and ranking")
    return pairs.dataset()


def pick_a_pic(labels: Path, columns: Mapping[str, str] | None) -> Dataset:
    """Pick-a-Pic (CSV, JSON lines, Parquet): ``image_0_uid,image_1_uid,label_0,label_1,caption``; 0.5 is a tie.

    Pictures are called ``UID.png``, or end as ``extension`` of ``columns`` says. For pairs of one's own ``columns``
    names ``first`` and ``second`` (paths), ``label`` (1: the first is preferred) and ``prompt``.
    """
    given = dict(columns or {})
    ending = "" if "first" in given else f".{given.pop('extension', 'png').lstrip('.')}"
    names = {"first": "image_0_uid", "second": "image_1_uid", "label": "label_0", "prompt": "caption", **given}
    for what in names:
        if what not in ("first", "second", "label", "prompt"):
            raise EvaluationError(f"--column {what}=...: pairs have first, second, label, prompt and extension")
    table = read_table(labels)
    for what, column in names.items():
        if not table.column(column):
            raise EvaluationError(f"{labels} has no column {column!r} for {what}; it has {table.listing()}")
    first, second, label, prompt = (table.column(names[what]) for what in ("first", "second", "label", "prompt"))
    pairs = _Pairs("pick-a-pic", labels)
    pairs.problems += table.problems
    for row in table.rows:
        images = [normal_path(row.cells[column]) for column in (first, second)]
        images = [image + ending if image else "" for image in images]
        value = number(row.cells[label])
        if value is None or not 0 <= value <= 1:
            said = row.cells[label]
            pairs.problem(row.where, f"{label} is {said!r}, expected 0, 0.5 or 1; the pair is left out")
        else:
            pairs.ranked(row.where, images, [1 - value, value], row.cells[prompt])
    return pairs.dataset()


def _add_ranking(
    pairs: _Pairs, where: str, images: list[str] | None, ranks: list[float] | None, entry: dict[str, Any], wanted: str
) -> None:
    if images is None or ranks is None or len(images) != len(ranks):
        found = ", ".join(entry) or "nothing"
        pairs.problem(where, f"expected {wanted}, lists of the same length, found {found}; it is left out")
        return
    prompt = entry.get("prompt")
    pairs.ranked(where, images, ranks, prompt.strip() if isinstance(prompt, str) else "")


def _strings(entry: dict[str, Any], names: Sequence[str]) -> list[str] | None:
    for found in _lists(entry, names):
        if all(isinstance(value, str) for value in found):
            return [normal_path(value) for value in found]
    return None


def _numbers(entry: dict[str, Any], name: str) -> list[float] | None:
    for found in _lists(entry, (name,)):
        values = [number(str(value)) for value in found]
        if None not in values:
            return [value for value in values if value is not None]
    return None


def _lists(entry: dict[str, Any], names: Sequence[str]) -> Iterator[list[Any]]:
    return (entry[name] for name in names if isinstance(entry.get(name), list))


def _no_columns(name: str, columns: Mapping[str, str] | None) -> None:
    if columns:
        raise EvaluationError(f"{name} has a fixed form; --column is for tables")
