"""Scores that were asked for before: a file of JSON lines that only grows."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from critiq_evaluation.errors import EvaluationError


@dataclass(frozen=True)
class CachedScore:
    """``raw`` and ``calibrated`` as in :class:`critiq.types.Score`; ``degraded`` says why a score does not compare."""

    raw: float
    calibrated: float | None
    degraded: str = ""


class ScoreCache:
    """Scores by model version, content of the picture's file, prompt, and dimension.

    Prompts are kept as their SHA-256 only. A line that an interruption cut off is passed over.
    """

    def __init__(self, path: Path | None) -> None:
        """Reads what is there; ``None``: nothing is read or kept.

        Raises:
            EvaluationError: the file exists and is not one of these.
        """
        self._path = path
        self._scores: dict[tuple[str, str, str], dict[str, CachedScore]] = {}
        self._file: TextIO | None = None
        self._torn = False
        if path is not None and path.exists():
            self._read(path)

    def get(self, model: str, picture: str, prompt: str) -> Mapping[str, CachedScore]:
        """Scores by dimension; empty if there are none."""
        return self._scores.get((model, picture, _prompt_key(prompt)), {})

    def put(self, model: str, picture: str, prompt: str, scores: Mapping[str, CachedScore]) -> None:
        """Keeps scores; each line is written at once, so what an interruption costs is at most one."""
        key = (model, picture, _prompt_key(prompt))
        self._scores.setdefault(key, {}).update(scores)
        if self._path is None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8", newline="\n")
            if self._torn:
                self._file.write("\n")
        values = {name: [score.raw, score.calibrated, score.degraded] for name, score in scores.items()}
        line = {"model": model, "picture": picture, "prompt": key[2], "scores": values}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        except OSError as error:
            raise EvaluationError(f"the cache of scores {path} cannot be read: {error.strerror}") from error
        self._torn = bool(lines[-1])
        read = [entry for line in lines if (entry := _parse(line)) is not None]
        if not read and any(line.strip() for line in lines[:-1]):
            raise EvaluationError(f"{path} exists and is no cache of scores; choose another file")
        for key, scores in read:
            self._scores.setdefault(key, {}).update(scores)


def _parse(line: str) -> tuple[tuple[str, str, str], dict[str, CachedScore]] | None:
    try:
        entry = json.loads(line)
        key = (str(entry["model"]), str(entry["picture"]), str(entry["prompt"]))
        return key, {
            str(name): CachedScore(float(raw), None if calibrated is None else float(calibrated), str(degraded))
            for name, (raw, calibrated, degraded) in entry["scores"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _prompt_key(prompt: str) -> str:
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest() if prompt else ""
