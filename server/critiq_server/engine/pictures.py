"""A caller's picture on its way into the engine: identified by content, seen through views, decoded at most once.

Decoding, hashing and cutting the views happen in one job in a pool of threads, off the event loop. A file that was seen
before is recognised by its bytes: then its content key is known without decoding it, and if the store holds the answer
nothing is decoded at all.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from critiq.types import ImageReport
from critiq_server.bundles.manifest import View
from critiq_server.engine.demand import Demand
from critiq_server.engine.flights import Flights
from critiq_server.features.keys import Key, encoded_key, pixels_key
from critiq_server.images.decode import decode, inspect
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage, ImageSource
from critiq_server.images.views import apply_view
from critiq_server.runtime.onnx import usable_cores

_ALIASES = 100_000
"""Files remembered by their bytes' hash: about 25 MB when full."""


@dataclass(frozen=True, slots=True)
class _Developed:
    key: Key
    report: ImageReport
    views: Mapping[View, NDArray[np.uint8]]


class Darkroom:
    """Turns sources into pictures. One a server."""

    def __init__(
        self,
        limits: ImageLimits,
        background: tuple[int, int, int],
        on_decode: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.limits = limits
        self._background = background
        self._on_decode = on_decode
        self._threads = ThreadPoolExecutor(usable_cores(), thread_name_prefix="critiq-decode")
        self._flights: Flights[_Developed] = Flights()
        self._aliases: OrderedDict[Key, tuple[Key, ImageReport]] = OrderedDict()

    def picture(self, source: ImageSource) -> Picture:
        """A picture of ``source``. Raises ``InvalidArgument`` or ``TooLarge`` if its header already rules it out."""
        inspect(source, self.limits)
        return Picture(source, self)

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def recall(self, file: Key) -> tuple[Key, ImageReport] | None:
        known = self._aliases.get(file)
        if known is not None:
            self._aliases.move_to_end(file)
        return known

    async def develop(
        self, source: ImageSource, file: Key | None, views: frozenset[View], demand: Demand
    ) -> _Developed:
        """Decodes ``source``, or joins those who are decoding the same file for the same views."""
        if file is None:
            return await self._decode(source, views)
        developed = await self._flights.join((file, views), demand, lambda _: self._decode(source, views))
        self._aliases[file] = (developed.key, developed.report)
        if len(self._aliases) > _ALIASES:
            self._aliases.popitem(last=False)
        return developed

    async def _decode(self, source: ImageSource, views: frozenset[View]) -> _Developed:
        developed, seconds = await asyncio.get_running_loop().run_in_executor(
            self._threads, _develop, source, self.limits, self._background, views
        )
        self._on_decode(seconds)
        return developed


class Picture:
    """One picture of one request."""

    def __init__(self, source: ImageSource, darkroom: Darkroom) -> None:
        self._source = source
        self._darkroom = darkroom
        self._file = encoded_key(source.data) if isinstance(source, EncodedImage) else None
        self._developed: _Developed | None = None
        self._report: ImageReport | None = None
        self._views: frozenset[View] = frozenset()

    async def identify(self, views: Iterable[View], demand: Demand) -> Key:
        """The key of the decoded pixels. When the picture is decoded, now or later, it is seen through all ``views``.

        Raises ``InvalidArgument`` if the picture cannot be decoded.
        """
        self._views = frozenset(views)
        known = self._darkroom.recall(self._file) if self._file is not None else None
        if known is not None:
            key, self._report = known
            return key
        return (await self._develop(self._views, demand)).key

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
        self._developed = await self._darkroom.develop(self._source, self._file, views, demand)
        self._report = self._developed.report
        return self._developed


def _develop(
    source: ImageSource, limits: ImageLimits, background: tuple[int, int, int], views: frozenset[View]
) -> tuple[_Developed, float]:
    started = perf_counter()
    decoded = decode(source, limits, background)
    developed = _Developed(
        pixels_key(decoded.pixels), decoded.report, {view: apply_view(decoded.pixels, view) for view in views}
    )
    return developed, perf_counter() - started
