"""Streams: windows, broken connections, refused items, slow and failing sources."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import critiq
from critiq import _retry
from tests.client.conftest import Blocking
from tests.client.fake_server import Behaviour, FakeServer


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.01)


@pytest.fixture(params=["blocking", "asyncio"])
def grpc_client(request: pytest.FixtureRequest, server: FakeServer) -> Iterator[Any]:
    client: Any = (critiq.Client if request.param == "blocking" else Blocking)(server.grpc_url, retries=2)
    yield client
    client.close()


def pictures(count: int) -> list[bytes]:
    return [b"picture %d" % index for index in range(count)]


def test_broken_streams_are_taken_up_again(grpc_client: Any, behaviour: Behaviour) -> None:
    behaviour.break_stream_after = [3, 0, 5]
    results = list(grpc_client.score_stream(pictures(30), window=4))
    assert sorted(int(result.id) for result in results) == list(range(30))
    assert all(result.error is None for result in results)
    assert behaviour.calls == ["Scoring/ScoreStream"] * 4
    # Only what was unanswered is sent again: at most a window for each break.
    assert len(behaviour.items) <= 30 + 3 * 4
    assert set(behaviour.items) == set(pictures(30))


def test_streams_that_never_get_anywhere_end(grpc_client: Any, behaviour: Behaviour) -> None:
    behaviour.break_stream_after = [0] * 9
    with pytest.raises(critiq.Unavailable, match="broken on purpose"):
        list(grpc_client.score_stream(pictures(5)))
    assert behaviour.calls == ["Scoring/ScoreStream"] * 3


def test_refused_stream_is_opened_again(grpc_client: Any, behaviour: Behaviour) -> None:
    behaviour.refuse = [critiq.TooBusy("full", retry_after=0.2), critiq.Stopping("bye")]
    assert len(list(grpc_client.score_stream(pictures(5)))) == 5


def test_stream_of_a_stranger_is_not(grpc_client: Any, behaviour: Behaviour) -> None:
    behaviour.refuse = [critiq.Unauthenticated("who are you")]
    with pytest.raises(critiq.Unauthenticated):
        list(grpc_client.score_stream(pictures(5)))
    assert len(behaviour.calls) == 1


def test_refused_items_are_sent_again(grpc_client: Any, behaviour: Behaviour) -> None:
    behaviour.refuse_items = [critiq.Stopping("bye"), critiq.TooBusy("full")]
    results = list(grpc_client.score_stream(pictures(6), window=3))
    assert sorted(result.id for result in results) == list("012345")
    assert all(result.error is None for result in results)


def test_window_bounds_what_is_read_ahead(connect: Any) -> None:
    read = 0

    def source() -> Iterator[bytes]:
        nonlocal read
        for picture in pictures(40):
            read += 1
            yield picture

    answered = 0
    for _ in connect().score_stream(source(), window=5):
        answered += 1
        # One more may be held, ready to go, by the asyncio client.
        assert read <= answered + 5 + 1
    assert answered == 40


def test_window_bounds_what_is_under_way(server: FakeServer) -> None:
    server.behaviour.delay = 0.02
    with critiq.Client(server.http_url) as client:
        assert len(list(client.score_stream(pictures(30), window=6))) == 30
    assert 2 <= server.behaviour.most_under_way <= 6


@pytest.mark.parametrize("window", [0, -3])
def test_window_of_nothing(connect: Any, window: int) -> None:
    with pytest.raises(critiq.InvalidArgument, match=r"^window:"):
        list(connect().score_stream(pictures(1), window=window))


def test_a_single_picture_is_no_stream(connect: Any) -> None:
    with pytest.raises(critiq.InvalidArgument, match=r"^items:"):
        list(connect().score_stream("photo.jpg"))


def test_silence_is_noticed(grpc_client: Any, behaviour: Behaviour) -> None:
    behaviour.delay = 30.0
    start = time.monotonic()
    with pytest.raises(critiq.DeadlineExceeded, match=r"for 0\.3 s"):
        list(grpc_client.score_stream(pictures(3), timeout=0.3))
    assert time.monotonic() - start < 20.0


def test_a_failing_source_fails_the_stream(connect: Any) -> None:
    def source() -> Iterator[bytes]:
        yield from pictures(3)
        raise LookupError("the caller's own")

    with pytest.raises(LookupError, match="the caller's own"):
        list(connect().score_stream(source()))


def test_a_stream_can_be_left(connect: Any, behaviour: Behaviour) -> None:
    client = connect()
    stream = client.score_stream(pictures(1000), window=4)
    next(stream)
    stream.close()
    assert client.score(b"picture").scores
    assert len(behaviour.items) < 50


def test_ids_may_repeat(connect: Any) -> None:
    items = [critiq.Item(picture, id="same") for picture in pictures(4)]
    assert [result.id for result in connect().score_stream(items)] == ["same"] * 4


def test_rest_item_errors_stay_with_the_item(server: FakeServer) -> None:
    server.behaviour.refuse = [critiq.TooBusy("full")] * 2
    with critiq.Client(server.http_url, retries=0) as client:
        results = list(client.score_stream(pictures(5)))
    assert sorted(type(result.error).__name__ for result in results) == ["NoneType"] * 3 + ["TooBusy"] * 2


async def test_source_may_wait_for_results(server: FakeServer, transport: str) -> None:
    """Each picture is sent only after the result of the one before: possible only if neither waits for the other."""
    answered = asyncio.Event()
    answered.set()

    async def source() -> AsyncIterator[bytes]:
        for picture in pictures(5):
            await answered.wait()
            answered.clear()
            yield picture

    async with critiq.AsyncClient(server.url(transport)) as client:
        seen = []
        async with asyncio.timeout(120):
            async for result in client.score_stream(source()):
                seen.append(result.id)
                answered.set()
    assert seen == list("01234")


async def test_results_do_not_wait_for_a_slow_source(server: FakeServer) -> None:
    answered = asyncio.Event()

    async def source() -> AsyncIterator[bytes]:
        yield b"first"
        await answered.wait()
        yield b"second"

    seen = []
    async with critiq.AsyncClient(server.grpc_url) as client, asyncio.timeout(60):
        async for result in client.score_stream(source()):
            seen.append(result.id)
            answered.set()
    assert seen == ["0", "1"]


async def test_cancelling_a_call_reaches_the_server(server: FakeServer) -> None:
    server.behaviour.delay = 30.0
    async with critiq.AsyncClient(server.grpc_url) as client:
        call = asyncio.create_task(client.score(b"picture"))
        await asyncio.sleep(0.2)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        server.behaviour.delay = 0.0
        assert (await client.score(b"picture")).scores
