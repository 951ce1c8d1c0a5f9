"""A caller's picture on its way into the engine: identified by content, seen through views, decoded at most once.

Decoding, hashing and cutting the views happen in one go in a worker thread, off the event loop, for several pictures at
a time when many wait: handing over costs the event loop more than a small picture is worth. A file that was seen
before is recognised by its bytes: then its content key is known without decoding it, and if the store holds the answer
nothing is decoded at all.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from critiq.errors import CritiqError
from critiq.types import ImageReport
from critiq_server.bundles.manifest import View
from critiq_server.engine.batcher import Batcher, BatchReport
from critiq_server.engine.demand import Demand
from critiq_server.engine.flights import Flights
from critiq_server.engine.workers import Workers
from critiq_server.features.keys import Key, encoded_key, pixels_key
from critiq_server.images.decode import decode, inspect
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage, ImageSource, RawImage
from critiq_server.images.views import apply_view
from critiq_server.runtime.onnx import usable_cores
from critiq_server.telemetry.faults import internal

_ALIASES = 100_000
"""Files remembered by their bytes' hash: about 25 MB when full."""

_AT_A_TIME = 8
_LARGE = 2_000_000
"""Pixels from which a picture is decoded by itself, so that small ones need not wait for it."""

_SMALL_TENSOR = 4 * 2**20
"""Bytes of a raw tensor up to which it is hashed on the event loop (0.4 ms) before anything else is done with it."""


@dataclass(frozen=True, slots=True)
class _Negative:
    """A picture to develop; ``key`` where it is known already."""

    source: ImageSource
    pixels: int
    views: frozenset[View]
    key: Key | None


@dataclass(frozen=True, slots=True)
class _Developed:
    key: Key
    report: ImageReport
    views: Mapping[View, NDArray[np.uint8]]


class Darkroom:
    """Turns sources into pictures. One a server.

    Args:
        limits: what is accepted.
        background: colour (red, green, blue) behind transparent pictures.
        on_decode: told the seconds that each picture took, in the thread that decoded it.
        on_wait: told the seconds that each picture waited for that thread.
        workers: threads to share with others; ``None``: as many of its own as there are cores.
        max_waiting: pictures waiting to be decoded at the most.
    """

    def __init__(
        self,
        limits: ImageLimits,
        background: tuple[int, int, int],
        on_decode: Callable[[float], None] = lambda seconds: None,
        workers: Workers | None = None,
        max_waiting: int = 1024,
        on_wait: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.limits = limits
        self._background = background
        self._on_decode = on_decode
        self._on_wait = on_wait
        self._workers = workers
        self._own: Workers | None = None
        self._max_waiting = max_waiting
        self._flights: Flights[_Developed] = Flights()
        self._aliases: OrderedDict[Key, tuple[Key, ImageReport]] = OrderedDict()

    def picture(self, source: ImageSource) -> Picture:
        """A picture of ``source``. Raises ``InvalidArgument`` or ``TooLarge`` if its header already rules it out."""
        header = inspect(source, self.limits)
        return Picture(source, header.width * header.height, self)

    def blank(self) -> Picture:
        """A picture for stages that see none."""
        return Picture(RawImage(bytes(3), (1, 1, 3)), 1, self)

    @property
    def waiting(self) -> int:
        """Pictures that wait to be decoded. May be asked from any thread, which must not make the batcher."""
        return self._batcher.waiting if "_batcher" in vars(self) else 0

    def close(self) -> None:
        """Ends its own threads once what they were given is done."""
        if self._own is not None:
            self._own.close()

    def recall(self, file: Key) -> tuple[Key, ImageReport] | None:
        known = self._aliases.get(file)
        if known is not None:
            self._aliases.move_to_end(file)
        return known

    async def develop(self, negative: _Negative, file: Key | None, demand: Demand) -> _Developed:
        """Decodes a picture, or joins those who are decoding the same file for the same views."""
        if file is None:
            return await self._decode(negative, demand)
        developed = await self._flights.join(
            (file, negative.views), demand, lambda flight: self._decode(negative, flight)
        )
        if file == developed.key:
            return developed
        self._aliases[file] = (developed.key, developed.report)
        if len(self._aliases) > _ALIASES:
            self._aliases.popitem(last=False)
        return developed

    def _decode(self, negative: _Negative, demand: Demand) -> asyncio.Future[_Developed]:
        bucket = id(negative) if negative.pixels >= _LARGE else None
        return self._batcher.enqueue(negative, bucket, demand)

    @cached_property
    def _batcher(self) -> Batcher[_Negative, _Developed]:
        cores = usable_cores()
        if self._workers is None:
            self._workers = self._own = Workers(cores, "decode")
        return Batcher(
            self._develop,
            _AT_A_TIME,
            self._max_waiting,
            workers=cores,
            on_batch=self._on_batch,
            name="decode",
            pool=self._workers,
        )

    def _on_batch(self, report: BatchReport) -> None:
        for seconds in report.queue_seconds:
            self._on_wait(seconds)

    def _develop(self, negatives: list[_Negative]) -> Sequence[_Developed | CritiqError]:
        return [self._develop_one(negative) for negative in negatives]

    def _develop_one(self, negative: _Negative) -> _Developed | CritiqError:
        """In a worker thread: an error is the picture's own."""
        started = perf_counter()
        try:
            decoded = decode(negative.source, self.limits, self._background)
            views = {view: apply_view(decoded.pixels, view) for view in negative.views}
            key = negative.key or pixels_key(decoded.pixels)
        except CritiqError as error:
            return error
        except Exception as error:
            return internal("decoding", error)
        self._on_decode(perf_counter() - started)
        return _Developed(key, decoded.report, views)


class Picture:
    """One picture of one request."""

    def __init__(self, source: ImageSource, pixels: int, darkroom: Darkroom) -> None:
        self._source = source
        self._pixels = pixels
        self._darkroom = darkroom
        self._key = None if isinstance(source, EncodedImage) else _tensor_key(source)
        self._file = encoded_key(source.data) if isinstance(source, EncodedImage) else self._key
        self._developed: _Developed | None = None
        self._report: ImageReport | None = None
        self._views: frozenset[View] = frozenset()

    async def identify(self, views: Iterable[View], demand: Demand) -> Key:
        """The key of the decoded pixels. When the picture is decoded, now or later, it is seen through all ``views``.

        Raises ``InvalidArgument`` if the picture cannot be decoded.
        """
        self._views = frozenset(views)
        if self._key is not None and isinstance(self._source, RawImage):
            height, width, _ = self._source.shape
            self._report = ImageReport("RAW", width, height)
            return self._key
        known = self._darkroom.recall(self._file) if self._file is not None else None
        if known is not None:
            key, self._report = known
            return key
        return (await self._develop(self._views, demand)).key

    def seen(self, view: View) -> NDArray[np.uint8] | None:
        """What ``view`` shows, if the picture was developed for it."""
        return self._developed.views.get(view) if self._developed is not None else None

    async def view(self, view: View, demand: Demand) -> NDArray[np.uint8]:
        """What ``view`` shows of the picture: uint8, shape as the view says."""
        developed = self._developed
        if developed is None or view not in developed.views:
            self._views |= {view}
            developed = await self._develop(self._views, demand)
        return developed.views[view]

    @property
    def report(self) -> ImageReport:
        """What was done to the picture. Known once it is identified."""
        if self._report is None:
            raise RuntimeError("the picture is not identified yet")
        return self._report

    async def _develop(self, views: frozenset[View], demand: Demand) -> _Developed:
        negative = _Negative(self._source, self._pixels, views, self._key)
        self._developed = await self._darkroom.develop(negative, self._file, demand)
        self._report = self._developed.report
        return self._developed


def _tensor_key(source: RawImage) -> Key | None:
    """The key of a small raw tensor that holds its pixels as decoding would give them; ``None`` for all others."""
    if source.dtype != "uint8" or source.layout != "hwc" or source.shape[2] != 3 or len(source.data) > _SMALL_TENSOR:
        return None
    return pixels_key(np.frombuffer(source.data, np.uint8).reshape(source.shape))
