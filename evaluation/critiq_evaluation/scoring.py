"""Scores of many pictures by served models, through the public client: what is judged is the system that serves.

Scores are kept in a file as they come, so a run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.progress import Progress, TaskID

import critiq
from critiq.cli.score import progress as progress_bar
from critiq.types import Dimension, ItemResult, Model
from critiq_evaluation.datasets.types import Dataset
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.score_cache import CachedScore, ScoreCache

WINDOW = 32
TIMEOUT = 120.0

Value = Literal["raw", "calibrated"]


@dataclass(frozen=True)
class Asked:
    """What a model is asked: ``image`` is a path below the directory of pictures."""

    image: str
    prompt: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a model said of one picture: scores by dimension, or why there are none."""

    scores: Mapping[str, CachedScore]
    error: str = ""
    """Empty if the picture was scored; else what went wrong, in the server's or the client's words."""


@dataclass(frozen=True)
class ModelScores:
    """All that one model version said."""

    model: Model
    outcomes: Mapping[Asked, Outcome]

    @property
    def name(self) -> str:
        """``NAME:VERSION``."""
        return f"{self.model.name}:{self.model.version}"

    def dimension(self, name: str) -> Dimension:
        """Raises :class:`EvaluationError` if the model has no such dimension; the message lists those that it has."""
        for dimension in self.model.dimensions:
            if dimension.name == name:
                return dimension
        known = ", ".join(dimension.name for dimension in self.model.dimensions)
        raise EvaluationError(f"the model {self.name} has no dimension {name!r}; it has {known}")

    def values(self, dimension: str, value: Value = "raw") -> dict[Asked, float]:
        """Scores of one dimension, higher is better: raw ones are negated where the model says that lower is better.

        Left out, and in :meth:`failures`: pictures without that score, scores that are not finite, and degraded ones,
        which do not compare.
        """
        lower = self.dimension(dimension).direction == "lower_is_better"
        found = {}
        for asked, outcome in self.outcomes.items():
            score = outcome.scores.get(dimension)
            number = None if score is None or score.degraded else getattr(score, value)
            if number is not None and math.isfinite(number):
                found[asked] = -number if lower and value == "raw" else float(number)
        return found

    def failures(self, dimension: str, value: Value = "raw") -> dict[Asked, str]:
        """Why pictures have no value in :meth:`values`."""
        scored = self.values(dimension, value)
        return {
            asked: _why_missing(outcome, dimension, value)
            for asked, outcome in self.outcomes.items()
            if asked not in scored
        }


def score_dataset(
    dataset: Dataset,
    images: Path,
    models: Sequence[str],
    *,
    server: str,
    cache: Path | None = None,
    dimensions: Sequence[str] = (),
    window: int = WINDOW,
    timeout: float = TIMEOUT,
) -> list[ModelScores]:
    """Scores all pictures of a dataset: rated ones and those of preference pairs. See :func:`score_pictures`."""
    rated = (Asked(picture.image, picture.prompt) for picture in dataset.pictures)
    preferred = (Asked(image, pair.prompt) for pair in dataset.preferences for image in (pair.better, pair.worse))
    pictures = list(dict.fromkeys([*rated, *preferred]))
    return score_pictures(
        pictures, images, models, server=server, cache=cache, dimensions=dimensions, window=window, timeout=timeout
    )


def score_pictures(
    pictures: Sequence[Asked],
    images: Path,
    models: Sequence[str],
    *,
    server: str,
    cache: Path | None = None,
    dimensions: Sequence[str] = (),
    window: int = WINDOW,
    timeout: float = TIMEOUT,
) -> list[ModelScores]:
    """Asks each model for each picture; a picture that fails is an outcome with an error and stops nothing.

    Args:
        pictures: what is asked, each once.
        images: the directory that the pictures' paths start from.
        models: ``NAME`` or ``NAME:VERSION``; an empty name is the server's default model.
        server: where critiq listens, as :class:`critiq.Client` takes it.
        cache: file of scores (JSON lines) that is read first and added to; ``None``: nothing is kept.
        dimensions: only these, of each model those that it has; default: all that can be judged.
        window: pictures under way at once.
        timeout: seconds to wait for the next answer.

    Raises:
        EvaluationError: ``images`` is no directory, or a model has none of ``dimensions``.
        critiq.CritiqError: no such model, or the server was not reached or stayed too busy. What was scored until then
            is in the cache.
    """
    if not images.is_dir():
        raise EvaluationError(f"{images} is no directory of pictures")
    digests = {asked.image: _digest(images, asked.image) for asked in pictures}
    store = ScoreCache(cache)
    try:
        with critiq.Client(server, timeout=timeout) as client, progress_bar() as progress:
            # All models are looked up before any is asked, so that a misspelt name costs no time.
            found = [_model(client, name) for name in models]
            runs = [_Run(client, model, images, digests, store, window, progress) for model in found]
            for run in runs:
                run.choose(dimensions)
            return [run.score(pictures) for run in runs]
    finally:
        store.close()


class _Run:
    """One model, asked once for all pictures."""

    def __init__(
        self,
        client: critiq.Client,
        model: Model,
        images: Path,
        digests: Mapping[str, str],
        cache: ScoreCache,
        window: int,
        progress: Progress,
    ) -> None:
        self._client = client
        self._model = model
        self._images = images
        self._digests = digests
        self._cache = cache
        self._window = window
        self._progress = progress
        self._identity = _identity(model)
        self._dimensions: list[Dimension] = list(model.dimensions)

    def choose(self, wanted: Sequence[str]) -> None:
        if not wanted:
            return
        self._dimensions = [dimension for dimension in self._model.dimensions if dimension.name in wanted]
        if not self._dimensions:
            known = ", ".join(dimension.name for dimension in self._model.dimensions)
            raise EvaluationError(f"the model {self._model.name} has none of {', '.join(wanted)}; it has {known}")

    def score(self, pictures: Sequence[Asked]) -> ModelScores:
        outcomes: dict[Asked, Outcome] = {}
        todo: dict[tuple[str, ...], list[Asked]] = {}
        for asked in pictures:
            due = tuple(entry.name for entry in self._dimensions if asked.prompt or not entry.needs_prompt)
            digest = self._digests[asked.image]
            known = self._cache.get(self._identity, digest, asked.prompt)
            if not digest:
                outcomes[asked] = Outcome({}, _why_unreadable(self._images, asked.image))
            elif not due:
                names = ", ".join(entry.name for entry in self._dimensions)
                outcomes[asked] = Outcome({}, f"the picture has no prompt, which is needed for {names}")
            elif all(name in known for name in due):
                outcomes[asked] = Outcome({name: known[name] for name in due})
            else:
                todo.setdefault(due, []).append(asked)
        name = f"{self._model.name}:{self._model.version}"
        bar = self._progress.add_task(name, total=len(pictures), completed=len(outcomes), failed=0)
        for due, batch in todo.items():
            outcomes |= self._ask(batch, due, bar)
        return ModelScores(self._model, {asked: outcomes[asked] for asked in pictures})

    def _ask(self, batch: Sequence[Asked], due: Sequence[str], bar: TaskID) -> dict[Asked, Outcome]:
        outcomes: dict[Asked, Outcome] = {}
        failed = 0
        items = (
            critiq.Item(self._images / asked.image, asked.prompt, id=str(index)) for index, asked in enumerate(batch)
        )
        for result in self._client.score_stream(
            items,
            window=self._window,
            model=self._model.name,
            version=self._model.version,
            dimensions=due,
            priority="bulk",
        ):
            asked = batch[int(result.id)]
            outcomes[asked] = _outcome(result)
            failed += result.error is not None
            if result.result is not None:
                self._cache.put(self._identity, self._digests[asked.image], asked.prompt, outcomes[asked].scores)
            self._progress.update(bar, advance=1, failed=failed)
        return outcomes


def _model(client: critiq.Client, name: str) -> Model:
    model, _, version = name.partition(":")
    return client.model(model, version)


def _identity(model: Model) -> str:
    """The model version and, in case that a bundle was exchanged under its name, the content of its stages."""
    stages = hashlib.sha256(repr([(stage.name, stage.digest) for stage in model.stages]).encode()).hexdigest()
    return f"{model.name}:{model.version}:{stages[:16]}"


def _outcome(result: ItemResult) -> Outcome:
    if result.result is None:
        return Outcome({}, str(result.error) or type(result.error).__name__)
    return Outcome(
        {
            score.dimension: CachedScore(score.raw, score.calibrated, score.degraded_reason if score.degraded else "")
            for score in result.result.scores
        }
    )


def _why_missing(outcome: Outcome, dimension: str, value: Value) -> str:
    if outcome.error:
        return outcome.error
    score = outcome.scores.get(dimension)
    if score is None:
        return f"no score for {dimension}: the picture has no prompt"
    if score.degraded:
        return f"degraded, so it does not compare with the others: {score.degraded}"
    number = getattr(score, value)
    return f"the model has no {value} value for {dimension}" if number is None else f"the model gave {number}"


def _digest(images: Path, name: str) -> str:
    """SHA-256 of the picture's file; empty if it cannot be read or lies outside the directory."""
    if _why_unreadable(images, name):
        return ""
    with (images / name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _why_unreadable(images: Path, name: str) -> str:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        return f"{name!r} points outside the directory of pictures"
    try:
        with (images / name).open("rb"):
            return ""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return f"cannot read {name!r}: {reason}"
