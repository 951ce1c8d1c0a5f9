from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from critiq.errors import InvalidArgument, TooLarge
from critiq_server.bundles.manifest import ResizeView
from critiq_server.engine.demand import Call
from critiq_server.engine.pictures import Darkroom
from critiq_server.features.keys import pixels_key
from critiq_server.images.limits import ImageLimits
from critiq_server.images.source import EncodedImage, RawImage
from tests.support import requests

SMALL, WIDE = ResizeView(height=8, width=8), ResizeView(height=4, width=16)
CALL = Call(1e12)


class Counting:
    """A darkroom and how often it decoded."""

    def __init__(self, limits: ImageLimits | None = None) -> None:
        self.decoded = 0
        self.room = Darkroom(limits or ImageLimits(), (255, 255, 255), self._count)

    def _count(self, seconds: float) -> None:
        assert seconds >= 0
        self.decoded += 1


@pytest.fixture
def darkroom() -> Iterator[Counting]:
    counting = Counting()
    yield counting
    counting.room.close()


def file(level: int = 51, kind: str = "PNG") -> EncodedImage:
    return EncodedImage(requests.flat(level, kind=kind))


async def test_a_picture_is_known_by_its_pixels(darkroom: Counting) -> None:
    expected = pixels_key(np.full((30, 40, 3), 51, np.uint8))
    for source in (file(), file(kind="WEBP"), RawImage(bytes([51]) * 3600, (30, 40, 3))):
        picture = darkroom.room.picture(source)
        assert await picture.identify([SMALL], CALL) == expected
        assert (picture.report.width, picture.report.height) == (40, 30)
    assert darkroom.decoded == 2  # the tensor holds its pixels as they are


async def test_a_file_seen_before_is_not_decoded_again_to_know_it(darkroom: Counting) -> None:
    first, second = darkroom.room.picture(file()), darkroom.room.picture(file())
    key = await first.identify([SMALL], CALL)
    assert await second.identify([SMALL], CALL) == key
    assert second.report == first.report
    assert darkroom.decoded == 1
    assert (await second.view(SMALL, CALL)).shape == (8, 8, 3)
    assert darkroom.decoded == 2, "to see it, it must be decoded"


async def test_a_picture_is_decoded_once_for_all_its_views(darkroom: Counting) -> None:
    picture = darkroom.room.picture(file())
    await picture.identify([SMALL, WIDE], CALL)
    shapes = [(await picture.view(view, CALL)).shape for view in (SMALL, WIDE, SMALL)]
    assert shapes == [(8, 8, 3), (4, 16, 3), (8, 8, 3)]
    assert darkroom.decoded == 1


async def test_a_known_picture_is_decoded_once_for_all_its_views(darkroom: Counting) -> None:
    await darkroom.room.picture(file()).identify([], CALL)
    picture = darkroom.room.picture(file())
    await picture.identify([SMALL, WIDE], CALL)
    small, wide = await asyncio.gather(picture.view(SMALL, CALL), picture.view(WIDE, CALL))
    assert (small.shape, wide.shape) == ((8, 8, 3), (4, 16, 3))
    assert darkroom.decoded == 2


async def test_those_who_bring_the_same_file_at_once_share_its_decoding(darkroom: Counting) -> None:
    pictures = [darkroom.room.picture(file()) for _ in range(5)]
    keys = await asyncio.gather(*(picture.identify([SMALL], CALL) for picture in pictures))
    assert len(set(keys)) == 1
    assert darkroom.decoded == 1
    assert [(await picture.view(SMALL, CALL)).mean() for picture in pictures] == [51] * 5


async def test_a_header_that_is_out_of_bounds_is_refused_before_anything_is_decoded() -> None:
    darkroom = Counting(ImageLimits(max_side=39))
    with pytest.raises(TooLarge):
        darkroom.room.picture(file())
    with pytest.raises(InvalidArgument):
        darkroom.room.picture(EncodedImage(b"nothing"))
    assert darkroom.decoded == 0
    darkroom.room.close()


async def test_a_broken_file_is_broken_every_time(darkroom: Counting) -> None:
    broken = EncodedImage(requests.flat(51)[:-20])
    for _ in range(2):
        picture = darkroom.room.picture(broken)
        with pytest.raises(InvalidArgument):
            await picture.identify([SMALL], CALL)
        with pytest.raises(RuntimeError):
            picture.report  # noqa: B018 - the look is the test
