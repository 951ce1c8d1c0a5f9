from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import critiq
from tests.client import fake_server
from tests.client.fake_server import Behaviour, FakeServer


@pytest.fixture(scope="session")
def shared_server() -> Iterator[FakeServer]:
    with fake_server.running(Behaviour()) as server:
        yield server


@pytest.fixture
def server(shared_server: FakeServer) -> FakeServer:
    """One server for all tests, with a fresh behaviour in place for each."""
    vars(shared_server.behaviour).update(vars(Behaviour()))
    return shared_server


@pytest.fixture
def behaviour(server: FakeServer) -> Behaviour:
    return server.behaviour


class Blocking:
    """Drives an ``AsyncClient`` from a blocking test, so that one test holds for both shells."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._client = critiq.AsyncClient(url, **settings)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*args: Any, **named: Any) -> Any:
            result = method(*args, **named)
            return self._stream(result) if hasattr(result, "__anext__") else self._wait(result)

        return call

    def close(self) -> None:
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _wait(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def _stream(self, results: AsyncIterator[Any]) -> Iterator[Any]:
        async def following() -> Any:
            return await anext(results, None)

        async def ending() -> None:
            await results.aclose()  # type: ignore[attr-defined]

        try:
            while (result := self._wait(following())) is not None:
                yield result
        finally:
            self._wait(ending())


@pytest.fixture(params=["grpc", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request: pytest.FixtureRequest, server: FakeServer, transport: str) -> Iterator[Any]:
    """``connect(**settings)`` gives a client, over each transport and in each shell in turn."""
    clients: list[Any] = []

    def make(**settings: Any) -> Any:
        kind = critiq.Client if request.param == "blocking" else Blocking
        client = kind(server.url(transport), **settings)
        clients.append(client)
        return client

    yield make
    for client in clients:
        client.close()
