"""The in-process limit: the same pictures decoded, viewed and run through the same graphs by one thread in a loop.

The loop runs in a process of its own on the server's core, and only while it is asked to, so that slices of it can
alternate with slices of serving. Every stage runs in batches of one size, the best for the whole.
"""

from __future__ import annotations

import logging
import multiprocessing
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import structlog

from benchmarks.pictures import Album, Kind, Picture, make_album
from benchmarks.server import pin
from critiq_server.bundles.manifest import ImageInput, PromptInput
from critiq_server.bundles.model import load_model
from critiq_server.images.decode import decode
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage, Pixels, RawImage
from critiq_server.images.views import apply_view
from critiq_server.runtime.onnx import RuntimeSettings

_NOUNS = (
    *("cat", "dog", "bird", "horse", "car", "boat", "train", "house"),
    *("tree", "flower", "table", "chair", "lamp", "clock", "book", "ball"),
)
BATCHES = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class LimitSlice:
    """``rate`` in pictures a second, ``cpu_ms`` a picture, ``batch_ms`` the median time of one batch."""

    rate: float
    cpu_ms: float
    batch_ms: float


class Limit:
    """Talks to the process. ``batch`` is the best batch size on this machine, ``cpu_ms`` what a picture costs in it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self.batch: int
        self.cpu_ms: float
        self.batch, self.cpu_ms = pipe.recv()

    def measure(self, seconds: float, batch: int = 0) -> LimitSlice:
        """Scores for about so long, in batches of ``batch`` pictures (0: the best size)."""
        size = batch or self.batch
        self._pipe.send((max(1, round(1000 * seconds / self.cpu_ms / size)), size))
        result: LimitSlice = self._pipe.recv()
        return result


@contextmanager
def in_process_limit(bundle: Path, kind: Kind, prompts: bool, core: int | None) -> Iterator[Limit]:
    """The limit of the bundle in that directory, on pictures of that kind, with or without a prompt each."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, bundle, kind, prompts, core), daemon=True)
    process.start()
    try:
        yield Limit(ours)
    finally:
        ours.send(None)
        process.join(10)


def _serve(pipe: Connection, bundle: Path, kind: Kind, prompts: bool, core: int | None) -> None:
    pin(core)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    loop = _Loop(bundle, make_album(kind), prompts)
    costs: dict[int, list[float]] = {batch: [] for batch in BATCHES}
    for _ in range(4):
        for batch in BATCHES:
            costs[batch].append(loop.run(-(-8 // batch), batch).cpu_ms)
    best = min(BATCHES, key=lambda batch: median(costs[batch]))
    pipe.send((best, median(costs[best])))
    while (order := pipe.recv()) is not None:
        pipe.send(loop.run(*order))


class _Loop:
    def __init__(self, bundle: Path, album: Album, prompts: bool) -> None:
        self._model = load_model(bundle, RuntimeSettings())
        dimensions = [entry for entry in self._model.manifest.dimensions if prompts or not entry.needs_prompt]
        self._plan = self._model.plan(frozenset(entry.stage for entry in dimensions))
        self._limits = ImageLimits(min_side=1)
        self._album = album
        self._numbers = count()

    def run(self, batches: int, batch: int) -> LimitSlice:
        """Scores new pictures; making them is not timed."""
        numbers = [[next(self._numbers) for _ in range(batch)] for _ in range(batches)]
        work = [([self._album[number] for number in group], [prompt(number) for number in group]) for group in numbers]
        times = []
        cpu, started = time.process_time(), time.perf_counter()
        for pictures, prompts in work:
            before = time.perf_counter()
            self._score(pictures, prompts)
            times.append(time.perf_counter() - before)
        elapsed, used = time.perf_counter() - started, time.process_time() - cpu
        total = batches * batch
        return LimitSlice(total / elapsed, 1000 * used / total, 1000 * median(times))

    def _score(self, pictures: Sequence[Picture], prompts: Sequence[str]) -> None:
        """Every picture decoded once, every view made once, every stage run once."""
        pixels = [self._decoded(picture) for picture in pictures]
        views = {view: np.stack([apply_view(entry, view) for entry in pixels]) for view in self._plan.views}
        tokens = {
            name: [self._model.tokenizers[name].encode(prompt) for prompt in prompts] for name in self._plan.tokenizers
        }
        values: dict[tuple[str, str], Any] = {}
        for stage in self._plan.stages:
            arrays = {}
            for name, source in stage.inputs:
                if isinstance(source, ImageInput):
                    arrays[name] = views[source.view]
                elif isinstance(source, PromptInput):
                    # The prompts of the benchmark all have the same length after padding.
                    arrays[name] = np.stack([getattr(entry, source.field) for entry in tokens[source.tokenizer]])
                else:
                    arrays[name] = values[source.stage, source.output]
            for output, value in stage.runtime.run(arrays).items():
                values[stage.spec.name, output] = value

    def _decoded(self, picture: Picture) -> Pixels:
        source = EncodedImage(picture.data) if picture.shape is None else RawImage(picture.data, picture.shape)
        return decode(source, self._limits).pixels


def prompt(number: int) -> str:
    """One of 65,536 prompts, all of as many words: so that they cost the same."""
    first, second, third, fourth = (_NOUNS[number >> shift & 15] for shift in (0, 4, 8, 12))
    return f"a photograph of a {first} beside a {second} with a {third} and a {fourth}"
