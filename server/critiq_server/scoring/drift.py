"""Watches scores and pictures for drift: collects them, keeps a series of each quantity, looks at them now and then."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import structlog
from numpy.typing import NDArray

from critiq.errors import FailedPrecondition, InvalidArgument, NotFound, PermissionDenied
from critiq.types import ImageReport, Score
from critiq_server.bundles.manifest import Manifest
from critiq_server.scoring import drift_files
from critiq_server.scoring.drift_labels import Labels, caller_label
from critiq_server.scoring.drift_report import DriftJson, Named, describe, report
from critiq_server.scoring.drift_series import Kind, Series
from critiq_server.scoring.drift_settings import DriftSettings

logger = structlog.get_logger("critiq")

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "RAW", "another")
INPUTS = ("pixels", "bytes", "format", "prompt_length")
_FORMAT_CODES = {name: code for code, name in enumerate(FORMATS)}
_WAITING = 256
"""Answers that are collected before they enter the sketches: in bulk that costs a thirtieth."""

Quantity = tuple[Kind, str]
Origin = tuple[str, str, str]
"""Model, version, label."""


class DriftMonitor:
    """What one server keeps. Not for several threads.

    Args:
        settings: see there.
        clock: seconds since 1970.
        share: among so many servers that are to have the baselines of one, together.
    """

    def __init__(self, settings: DriftSettings, clock: Callable[[], float] = time.time, share: int = 1) -> None:
        self.settings = settings
        self._share = share
        self.labels = Labels(settings.labels)
        self.now = clock
        self._traffic: dict[Origin, dict[Quantity, Series]] = {}
        """The longest unused first."""
        self._waiting: list[tuple[Manifest, str, Sequence[Score], ImageReport, int, int]] = []
        self._embeddings: dict[tuple[str, str], _Embedding] = {}
        self._saved: dict[str, Any] = drift_files.load(settings.directory) if settings.directory else {}

    def observe(
        self, manifest: Manifest, scores: Sequence[Score], image: ImageReport, size: int, prompt_length: int
    ) -> None:
        """Takes note of an answer: scores, and the picture's report, its bytes, and the prompt's characters."""
        if not self.settings.enabled:
            return
        self._waiting.append((manifest, caller_label.get(), scores, image, size, prompt_length))
        if len(self._waiting) >= _WAITING:
            self.flush()

    def serve(self, manifest: Manifest, vectors: Mapping[str, Sequence[str]]) -> None:
        """Prepares for a model version that is about to be served, and takes up what was saved of it.

        ``vectors``: by stage that sees the picture, in the manifest's order, its outputs that are single vectors.
        """
        if not self.settings.enabled:
            return
        stage = self.settings.embedding_stage or next((stage for stage, names in vectors.items() if names), "")
        if self.settings.embedding_every and vectors.get(stage):
            self._embeddings[manifest.name, manifest.version] = _Embedding(manifest, stage, tuple(vectors[stage]))
        for key in list(self._saved):
            model, version, label, kind, name = drift_files.parts_of(key)
            known = kind != "score" or name in [dimension.name for dimension in manifest.dimensions]
            if (model, version) == (manifest.name, manifest.version) and known:
                self._series(manifest, label, (kind, name))

    def embed(self, manifest: Manifest, stage: str, features: Mapping[str, NDArray[Any]]) -> None:
        """Takes note of what a stage computed, if it is the one whose vectors are watched, and the sample's turn."""
        embedding = self._embeddings.get((manifest.name, manifest.version))
        if embedding is None or embedding.stage != stage:
            return
        embedding.passed += 1
        if embedding.passed % self.settings.embedding_every == 0:
            vector = np.concatenate([features[name] for name in embedding.outputs], dtype=np.float32)
            if np.isfinite(vector).all():
                embedding.waiting.append(vector)

    def flush(self) -> None:
        """Puts what was collected into the series."""
        now, waiting, self._waiting = self.now(), self._waiting, []
        columns: dict[tuple[int, str], tuple[Manifest, dict[Quantity, list[float]]]] = {}
        for manifest, label, scores, image, size, prompt_length in waiting:
            entry = columns.get((id(manifest), label))
            if entry is None:
                entry = columns[id(manifest), label] = (manifest, {("input", name): [] for name in INPUTS})
            values = entry[1]
            for score in scores:
                if not score.degraded:  # on another scale
                    values.setdefault(("score", score.dimension), []).append(score.raw)
            values["input", "pixels"].append(image.width * image.height)
            values["input", "bytes"].append(size)
            values["input", "format"].append(_FORMAT_CODES.get(image.format, len(FORMATS) - 1))
            if prompt_length:
                values["input", "prompt_length"].append(prompt_length)
        for (_, label), (manifest, values) in columns.items():
            arrays = {quantity: np.array(found, np.float32) for quantity, found in values.items() if found}
            self.record(manifest, label, arrays, now)
        for embedding in self._embeddings.values():
            if embedding.waiting:
                vectors, embedding.waiting = embedding.waiting, []
                self.record(embedding.manifest, "", {("embedding", embedding.stage): np.stack(vectors)}, now)

    def record(self, manifest: Manifest, label: str, values: Mapping[Quantity, NDArray[Any]], now: float) -> None:
        """Puts ``values`` ([n], of embeddings [n, width]) into the series of ``manifest`` and ``label``."""
        origin = manifest.name, manifest.version, label
        if origin in self._traffic:
            self._traffic[origin] = self._traffic.pop(origin)  # is now the last used
        completed = [self._series(manifest, label, quantity).update(found, now) for quantity, found in values.items()]
        if any(completed):
            self.save()

    def fresh(self) -> Iterator[tuple[Origin, Series]]:
        """The series that have values which no look has seen."""
        self.flush()
        for origin, group in list(self._traffic.items()):
            for series in list(group.values()):
                if series.fresh or series.state in ("warning", "alarm"):
                    yield origin, series

    def look(self, origin: Origin, series: Series) -> None:
        """Judges one series; a change of its state is logged."""
        before = series.state
        state = series.look(self.now())
        if state != before:
            model, version, label = origin
            write = logger.warning if state in ("warning", "alarm") else logger.info
            write("drift", state=state, was=before, model=model, version=version, label=label, name=series.name)

    def look_at_all(self) -> None:
        """Judges all series that have changed."""
        for origin, series in self.fresh():
            self.look(origin, series)

    def all(self, model: str = "", version: str = "", label: str | None = None, name: str = "") -> list[Named]:
        """The series, or those of a model, version, label or name."""
        return [
            (*origin, series)
            for origin, group in list(self._traffic.items())  # the metrics are read in a thread
            if model in ("", origin[0]) and version in ("", origin[1]) and label in (None, origin[2])
            for series in list(group.values())
            if name in ("", series.name)
        ]

    async def report(
        self, model: str = "", version: str = "", label: str | None = None, *, sketches: bool = False
    ) -> DriftJson:
        """What ``/v1/drift`` answers."""
        self.flush()
        now, entries = self.now(), []
        for named in self.all(model, version, label):
            entries.append(describe(*named, now, sketches=sketches))
            await asyncio.sleep(0)  # one or two milliseconds each: requests come in between
        return report(self.settings, entries, now)

    def set_baseline(
        self,
        model: str,
        version: str = "",
        label: str | None = None,
        name: str = "",
        *,
        hours: float | None = None,
        requests: int | None = None,
    ) -> DriftJson:
        """Makes the values of the last ``hours`` the baseline, or the next ``requests``; exactly one is given.

        Returns the series whose baseline was set.

        Raises:
            PermissionDenied: the settings do not allow it.
            InvalidArgument: both or neither are given, or out of range.
            NotFound: there is no such series.
            FailedPrecondition: none of them has enough values in that time; those that have not are left as they are.
        """
        self.check_baseline(hours, requests)
        counts = self.counts(model, version, label, name, hours)
        now = self.now()
        begun = self.begin(chosen(counts, hours, self.settings.least_count), hours, requests, now)
        return report(self.settings, [describe(*named, now) for named in begun], now)

    def check_baseline(self, hours: float | None, requests: int | None) -> None:
        """Raises what :meth:`set_baseline` does for what is asked, whatever there is."""
        most = self.settings.keep_days * 24
        if not self.settings.allow_changes:
            raise PermissionDenied("setting baselines is switched off; set drift.allow_changes to allow it")
        if (hours is None) == (requests is None):
            raise InvalidArgument("give either hours or requests", field="hours")
        if hours is not None and not 0 < hours <= most:
            raise InvalidArgument(f"{hours:g}; more than 0 and up to {most:g} are due", field="hours")
        if requests is not None and not 100 <= requests <= 10_000_000:
            raise InvalidArgument(f"{requests}; 100 to 10000000 are due", field="requests")

    def counts(
        self, model: str, version: str = "", label: str | None = None, name: str = "", hours: float | None = None
    ) -> dict[str, int]:
        """How many values the series, by their keys, got in the last ``hours``, and since their baseline."""
        self.flush()
        now, seconds = self.now(), 3600 * (hours or 0)
        return {
            drift_files.key_of(of, its_version, its_label, series.kind, series.name): series.count_since(now, seconds)
            for of, its_version, its_label, series in self.all(model, version, label, name)
        }

    def begin(self, keys: Collection[str], hours: float | None, requests: int | None, now: float) -> list[Named]:
        """Sets the baseline of the series with these keys, and returns them.

        One that has nothing of the last ``hours``, while others have, learns its baseline anew.
        """
        self.flush()
        begun = []
        for model, version, label, series in self.all():
            if drift_files.key_of(model, version, label, series.kind, series.name) not in keys:
                continue
            if hours is not None and series.count_since(now, 3600 * hours):
                series.freeze(now, 3600 * hours)
            else:
                series.learn(self._wanted(series.kind, requests or self.settings.baseline_requests), now)
            begun.append((model, version, label, series))
        self.save()
        return begun

    def save(self) -> None:
        """Writes all series to the directory of the settings, if there is one; a failure is logged."""
        if self.settings.directory is not None:
            unclaimed = dict(list(self._saved.items())[-self.settings.max_series :])
            drift_files.save(self.settings.directory, self.all(), unclaimed)

    def close(self) -> None:
        """Saves everything, the last answers included, and lets go of it."""
        self.flush()
        self.save()
        # The sketches' library complains at the interpreter's end of every one that is still there.
        self._traffic.clear()

    def _series(self, manifest: Manifest, label: str, quantity: Quantity) -> Series:
        """The series of that quantity; a new one, with what was saved of it, if there is none."""
        origin = manifest.name, manifest.version, label
        group = self._traffic.setdefault(origin, {})
        if quantity in group:
            return group[quantity]
        kind, name = quantity
        reference = manifest.dimension(name).reference if kind == "score" else None
        wanted = self._wanted(kind, self.settings.baseline_requests)
        series = group[quantity] = Series(kind, name, self.settings, reference, categories_of(kind, name), wanted)
        key = drift_files.key_of(*origin, kind, name)
        if (saved := self._saved.pop(key, None)) is not None:
            try:
                series.restore(saved)
            except ValueError as error:
                logger.warning("a saved series cannot be read, and starts anew", series=key, reason=str(error))
        self._make_room()
        return series

    def _wanted(self, kind: Kind, requests: int) -> int:
        """Values that so many requests to all servers bring this one, for a baseline."""
        if kind == "embedding":
            requests = max(self.settings.least_count, requests // max(1, self.settings.embedding_every))
        return max(1, math.ceil(max(self.settings.least_count, requests) / self._share))

    def _make_room(self) -> None:
        """Forgets the longest unused traffic while there are too many series."""
        while len(self._traffic) > 1 and sum(map(len, self._traffic.values())) > self.settings.max_series:
            model, version, label = origin = next(iter(self._traffic))
            del self._traffic[origin]
            logger.warning(
                "too many series (drift.max_series): forgot the longest unused",
                model=model,
                version=version,
                label=label,
            )


def categories_of(kind: Kind, name: str) -> tuple[str, ...]:
    """What a quantity's values are called, where they have names."""
    return FORMATS if (kind, name) == ("input", "format") else ()


def chosen(counts: Mapping[str, int], hours: float | None, least: int) -> list[str]:
    """Keys of the series whose baseline can be set, by how many values they have of the last ``hours``.

    Raises:
        NotFound: there is no series.
        FailedPrecondition: none has enough.
    """
    if not counts:
        raise NotFound("there is no such series; GET /v1/drift lists them", field="model")
    if hours is None:
        return list(counts)
    if (most := max(counts.values())) < least:
        raise FailedPrecondition(
            f"the last {hours:g} hours have {most} values since the last baseline, and {least} are needed; wait, or "
            "give requests",
            field="hours",
        )
    return [key for key, count in counts.items() if count >= least]


@dataclass(eq=False)
class _Embedding:
    """The vectors that are watched: outputs of one stage, joined."""

    manifest: Manifest
    stage: str
    outputs: tuple[str, ...]
    passed: int = 0
    waiting: list[NDArray[np.float32]] = field(default_factory=list)
