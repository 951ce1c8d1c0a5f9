"""Computes features of many pictures into a store: reading and decoding ahead, one commit a batch.

What is in the store is never computed again. Batches follow from the source alone, not from what was done before: a
build that was killed and started again computes each batch as it would have been computed without the interruption, and
ends with the same bytes. Killing it costs at most the batch in flight.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from critiq.errors import CritiqError
from critiq_exporters.features.catalogue import Asked, Entry, find_entry
from critiq_exporters.features.sources import Item, Shard
from critiq_server.features.disk import DiskStore
from critiq_server.features.keys import Key, encoded_key, pixels_key, prompt_key
from critiq_server.features.records import Features
from critiq_server.images.decode import decode, inspect
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage, Pixels
from critiq_server.images.views import apply_view
from critiq_server.prompts import normalise
from critiq_server.runtime.lmm.base import FEATURE, Extractor, Instruction, LmmUnreachable

WINDOW = 8
"""Batches' worth of pictures among which those with as many tokens are brought together."""

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True, slots=True)
class Failure:
    """A picture without features, and why."""

    name: str
    error: str


@dataclass(slots=True)
class Progress:
    """How far a build is. ``seconds`` tell what the time went into; the rest is nothing to speak of."""

    total: int | None
    seen: int = 0
    stored: int = 0
    """Pictures whose features were in the store already, their own or a twin's."""
    computed: int = 0
    failures: list[Failure] = field(default_factory=list)
    waiting_seconds: float = 0.0
    """For pictures to be read and decoded, beyond what went on beside the LMM's work."""
    lmm_seconds: float = 0.0
    storing_seconds: float = 0.0
    started: float = field(default_factory=time.monotonic)

    @property
    def done(self) -> int:
        return self.stored + self.computed + len(self.failures)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to compute.

    Args:
        questions: to one LMM, through one view.
        batch: pictures in one call of the extractor, at the most.
        workers: threads that read and decode.
        limits: of pictures; as the server's, or it will not accept what was built for it.
        prompt_bytes: longest prompt, in UTF-8.
        background: behind transparent pictures; as the server's, or their keys differ.
    """

    questions: Sequence[Asked]
    batch: int = 16
    workers: int = 4
    limits: ImageLimits = field(default_factory=ImageLimits)
    prompt_bytes: int = 8192
    background: tuple[int, int, int] = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class _Read:
    """A file, read and looked at, not decoded."""

    name: str
    prompt: str
    data: bytes
    file: Key
    height: int
    width: int


@dataclass(frozen=True, slots=True, eq=False)
class _Decoded:
    read: _Read
    pixels: Pixels
    """Through the questions' view."""
    entry: Entry
    keys: tuple[Key, ...]
    """Of the questions' features, in their order."""


def build(
    items: Iterable[Item],
    plan: Plan,
    extractor: Extractor,
    store: DiskStore,
    progress: Progress,
    on_batch: Callable[[Progress], None] = lambda progress: None,
    shard: Shard = Shard(),  # noqa: B008 - immutable
) -> None:
    """Computes what is missing; ``progress`` says what became of each picture.

    Args:
        items: pictures with their prompts.
        plan: what to compute.
        extractor: of the questions' LMM.
        store: takes features, and notes of what they are of.
        progress: counts; read it in ``on_batch`` and at the end.
        on_batch: called after each batch.
        shard: which of ``items``.

    Raises:
        LmmUnreachable: an LMM that is served elsewhere stopped answering. What was computed until then is stored.
        StoreError: the store failed, as of the batch in flight.
    """
    store.put_many({}, dict(asked.note() for asked in plan.questions))
    mine = (item for item in items if shard.holds(item.name))
    with ThreadPoolExecutor(plan.workers, "critiq-build") as pool:
        try:
            batches = _batches(pool, mine, plan, extractor, store, progress)
            decoded = _ahead(batches, lambda reads: [pool.submit(_decode, read, plan) for read in reads], depth=2)
            for futures in decoded:
                if pictures := _collected(futures, progress):
                    _compute(pictures, plan, extractor, store, progress)
                on_batch(progress)
        finally:
            pool.shutdown(cancel_futures=True)


def _batches(
    pool: ThreadPoolExecutor,
    items: Iterable[Item],
    plan: Plan,
    extractor: Extractor,
    store: DiskStore,
    progress: Progress,
) -> Iterator[list[_Read]]:
    """Pictures to decode and compute, in the batches in which they are computed."""
    futures = _ahead(items, lambda item: pool.submit(_read, item, plan), depth=WINDOW * plan.batch)
    outcomes = (_waited(future, progress) for future in futures)
    while window := list(islice(outcomes, WINDOW * plan.batch)):
        progress.seen += len(window)
        buckets: dict[Hashable, list[_Read]] = {}
        for outcome in window:
            if isinstance(outcome, Failure):
                progress.failures.append(outcome)
            else:
                buckets.setdefault(extractor.bucket(outcome.height, outcome.width), []).append(outcome)
        for alike in buckets.values():
            for start in range(0, len(alike), plan.batch):
                batch = alike[start : start + plan.batch]
                missing = [read for read in batch if not _is_stored(read, plan, store)]
                progress.stored += len(batch) - len(missing)
                yield missing


def _read(item: Item, plan: Plan) -> _Read | Failure:
    try:
        data = item.load()
        header = inspect(EncodedImage(data), plan.limits)
        prompt = normalise(item.prompt, plan.prompt_bytes)
    except (CritiqError, OSError) as error:
        return Failure(item.name, str(error))
    except Exception as error:  # a stranger's file can fail in any way; it must not end a night's work
        return Failure(item.name, f"{type(error).__name__}: {error}")
    return _Read(item.name, prompt, data, encoded_key(data), header.height, header.width)


def _is_stored(read: _Read, plan: Plan, store: DiskStore) -> bool:
    """Whether the store has all features of this very file with this prompt; known without decoding it."""
    entry = find_entry(store, read.name)
    if entry is None or (entry.file, entry.prompt) != (read.file.hex(), read.prompt):
        return False
    keys = [entry.features.get(asked.digest) for asked in plan.questions]
    return None not in keys and len(store.holds({bytes.fromhex(key) for key in keys if key})) == len(set(keys))


def _decode(read: _Read, plan: Plan) -> _Decoded | Failure:
    try:
        pixels = decode(EncodedImage(read.data), plan.limits, plan.background).pixels
    except CritiqError as error:
        return Failure(read.name, str(error))
    except Exception as error:  # as above
        return Failure(read.name, f"{type(error).__name__}: {error}")
    picture = pixels_key(pixels)
    keys = tuple(asked.key(picture, prompt_key(read.prompt)) for asked in plan.questions)
    features = {asked.digest: key.hex() for asked, key in zip(plan.questions, keys, strict=True)}
    height, width = pixels.shape[:2]
    entry = Entry(read.name, read.prompt, read.file.hex(), picture.hex(), height, width, features)
    return _Decoded(read, apply_view(pixels, plan.questions[0].view), entry, keys)


def _collected(futures: Sequence[Future[_Decoded | Failure]], progress: Progress) -> list[_Decoded]:
    pictures = []
    for future in futures:
        outcome = _waited(future, progress)
        if isinstance(outcome, Failure):
            progress.failures.append(outcome)
        else:
            pictures.append(outcome)
    return pictures


def _compute(
    pictures: Sequence[_Decoded], plan: Plan, extractor: Extractor, store: DiskStore, progress: Progress
) -> None:
    """Asks the questions whose answers are missing, and commits the answers of the whole batch."""
    there = store.holds({key for picture in pictures for key in picture.keys})
    alike: dict[tuple[int, ...], list[_Decoded]] = {}
    planned = set(there)
    for picture in pictures:
        lacking = tuple(number for number, key in enumerate(picture.keys) if key not in planned)
        planned.update(picture.keys)  # of two pictures that are the same, one is computed
        if lacking:
            alike.setdefault(lacking, []).append(picture)
    found: dict[Key, Features] = {}
    failures: dict[str, Failure] = {}
    started = time.monotonic()
    for lacking, together in alike.items():
        for picture, features in zip(together, _asked(together, lacking, plan, extractor), strict=True):
            if isinstance(features, Failure):
                failures[features.name] = features
                continue
            for number, values in zip(lacking, features, strict=True):
                found[picture.keys[number]] = {FEATURE: values}
    stored_from = time.monotonic()
    progress.lmm_seconds += stored_from - started
    held = there | found.keys()
    complete = [picture for picture in pictures if held.issuperset(picture.keys)]
    notes = dict(picture.entry.joined(find_entry(store, picture.read.name)).note() for picture in complete)
    store.put_many(found, notes)
    progress.storing_seconds += time.monotonic() - stored_from
    progress.failures += [
        failures.get(picture.read.name, Failure(picture.read.name, "the same picture failed under another name"))
        for picture in pictures
        if picture not in complete
    ]
    computed = sum(1 for picture in complete if not found.keys().isdisjoint(picture.keys))
    progress.computed += computed
    progress.stored += len(complete) - computed


def _asked(
    pictures: Sequence[_Decoded], numbers: Sequence[int], plan: Plan, extractor: Extractor
) -> Sequence[NDArray[np.float32] | Failure]:
    """Features ``[questions, width]`` of each picture. If a batch fails, its pictures are asked about one by one."""
    instructions = [
        Instruction(plan.questions[number].lmm.instruction, plan.questions[number].lmm.text) for number in numbers
    ]
    try:
        return list(
            extractor.extract(
                [picture.pixels for picture in pictures], [picture.read.prompt for picture in pictures], instructions
            )
        )
    except LmmUnreachable:
        raise
    except Exception as error:  # an LMM fails in many ways: out of memory, or on one picture's shape
        if len(pictures) == 1:
            return [Failure(pictures[0].read.name, f"the LMM failed: {type(error).__name__}: {error}")]
    return [_asked([picture], numbers, plan, extractor)[0] for picture in pictures]


def _ahead(inputs: Iterable[In], start: Callable[[In], Out], depth: int) -> Iterator[Out]:
    """``start`` of each input, in their order, begun for up to ``depth`` inputs before the first is asked for."""
    under_way: deque[Out] = deque()
    for entry in inputs:
        under_way.append(start(entry))
        if len(under_way) >= depth:
            yield under_way.popleft()
    yield from under_way


def _waited(future: Future[Out], progress: Progress) -> Out:
    started = time.monotonic()
    outcome = future.result()
    progress.waiting_seconds += time.monotonic() - started
    return outcome
