"""Refusals, retries, deadlines, broken connections: over both transports and in both shells."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import numpy as np
import pytest

import critiq
from critiq import _retry
from tests.client import fake_server
from tests.client.conftest import Blocking
from tests.client.fake_server import Behaviour, FakeServer

PICTURE = np.full((4, 5, 3), 51, np.uint8)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_retry, "FIRST_PAUSE", 0.01)


@pytest.mark.parametrize("error", [critiq.TooBusy("full"), critiq.Stopping("bye"), critiq.Unavailable("gone")])
def test_refusals_are_retried(connect: Any, behaviour: Behaviour, error: critiq.CritiqError) -> None:
    behaviour.refuse = [error, error, error]
    assert connect(retries=3).score(PICTURE)["visual_quality"].raw == pytest.approx(0.2)
    assert len(behaviour.calls) == 4


def test_retries_end(connect: Any, behaviour: Behaviour) -> None:
    behaviour.refuse = [critiq.TooBusy("full")] * 3
    with pytest.raises(critiq.TooBusy, match="full"):
        connect(retries=2).score(PICTURE)
    assert len(behaviour.calls) == 3


@pytest.mark.parametrize(
    "error",
    [
        critiq.InvalidArgument("no", field="image"),
        critiq.DeadlineExceeded("late"),
        critiq.Internal("fault 1234"),
        critiq.ModelNotLoaded("not loaded"),
        critiq.PermissionDenied("no"),
    ],
)
def test_the_rest_is_not_retried(connect: Any, behaviour: Behaviour, error: critiq.CritiqError) -> None:
    behaviour.refuse = [error]
    with pytest.raises(type(error)) as caught:
        connect(retries=3).models()
    assert type(caught.value) is type(error)
    assert len(behaviour.calls) == 1


def test_a_model_that_is_being_loaded_is_waited_for(connect: Any, behaviour: Behaviour) -> None:
    behaviour.refuse = [critiq.ModelNotLoaded("loading", retry_after=0.05)]
    assert connect().score(PICTURE).scores


def test_load_is_not_retried(connect: Any, behaviour: Behaviour) -> None:
    behaviour.refuse = [critiq.Unavailable("gone")] * 2
    client = connect(retries=3)
    with pytest.raises(critiq.Unavailable):
        client.load_model("mean")
    with pytest.raises(critiq.Unavailable):
        client.unload_model("mean")
    assert len(behaviour.calls) == 2


def test_hint_is_honoured(connect: Any, behaviour: Behaviour) -> None:
    behaviour.refuse = [critiq.TooBusy("full", retry_after=0.4)]
    connect().score(PICTURE)
    first, second = behaviour.times
    assert 0.4 <= second - first < 1.5


def test_hint_in_headers_is_honoured(connect: Any, behaviour: Behaviour) -> None:
    behaviour.hint_in_headers = True
    behaviour.refuse = [critiq.TooBusy("full", retry_after=1.0)]
    connect().score(PICTURE)
    first, second = behaviour.times
    assert second - first >= 1.0


def test_no_waiting_past_the_deadline(connect: Any, behaviour: Behaviour) -> None:
    behaviour.refuse = [critiq.TooBusy("full", retry_after=30.0)]
    start = time.monotonic()
    with pytest.raises(critiq.TooBusy) as caught:
        connect().score(PICTURE, timeout=20.0)
    assert time.monotonic() - start < 15.0
    assert caught.value.retry_after == 30.0


def test_deadline(connect: Any, behaviour: Behaviour) -> None:
    behaviour.delay = 30.0
    start = time.monotonic()
    with pytest.raises(critiq.DeadlineExceeded, match=r"within 0\.3 s"):
        connect().score(PICTURE, timeout=0.3)
    assert 0.25 < time.monotonic() - start < 20.0
    assert len(behaviour.calls) == 1


def test_deadline_covers_all_tries_and_reaches_the_server(connect: Any, behaviour: Behaviour) -> None:
    behaviour.refuse = [critiq.TooBusy("full", retry_after=1.0)]
    connect().score(PICTURE, timeout=20.0)
    first, second = behaviour.timeouts
    assert first is not None
    assert second is not None
    # Not one against the other: on a busy machine either may be looked at late.
    assert 10.0 < first <= 20.1
    assert second <= 19.1


def test_no_deadline(connect: Any, behaviour: Behaviour) -> None:
    connect(timeout=None).models()
    connect().models(timeout=float("inf"))
    assert all(timeout is None or timeout > 1e6 for timeout in behaviour.timeouts)


def test_refused_items_of_a_batch_are_sent_again(connect: Any, behaviour: Behaviour) -> None:
    behaviour.refuse_items = [critiq.TooBusy("full"), critiq.Stopping("bye")]
    results = connect().score_batch([PICTURE] * 5)
    assert all(result.unwrap().scores for result in results)
    assert [len(request.items) for request in behaviour.requests] == [5, 2]  # type: ignore[attr-defined]


def test_items_that_stay_refused_do_not_cost_their_neighbours(connect: Any, behaviour: Behaviour) -> None:
    behaviour.refuse_items = [critiq.TooBusy("full")] * 3
    results = connect(retries=1).score_batch([PICTURE, PICTURE, PICTURE])
    assert [result.error is None for result in results] == [True, True, True]
    behaviour.refuse_items = [critiq.TooBusy("full")] * 2
    results = connect(retries=0).score_batch([PICTURE, PICTURE, PICTURE])
    assert [type(result.error) for result in results] == [critiq.TooBusy, critiq.TooBusy, type(None)]


@pytest.mark.parametrize("shell", ["blocking", "asyncio"])
@pytest.mark.parametrize("transport", ["grpc", "http"])
class TestUnreachable:
    def client(self, shell: str, transport: str, port: int, **settings: Any) -> Any:
        url = f"127.0.0.1:{port}" if transport == "grpc" else f"http://127.0.0.1:{port}"
        return (critiq.Client if shell == "blocking" else Blocking)(url, **settings)

    def test_nobody_there(self, shell: str, transport: str) -> None:
        client = self.client(shell, transport, free_port(), retries=1)
        with pytest.raises(critiq.Unavailable, match=r"127\.0\.0\.1"):
            client.models()
        with pytest.raises(critiq.Unavailable):
            list(client.score_stream([PICTURE] * 3))
        with pytest.raises(critiq.DeadlineExceeded, match="not ready after"):
            client.wait_ready(0.4)
        client.close()

    def test_somebody_who_never_answers(self, shell: str, transport: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = self.client(shell, transport, listener.getsockname()[1], retries=3)
            start = time.monotonic()
            with pytest.raises((critiq.DeadlineExceeded, critiq.Unavailable)):
                client.models(timeout=0.5)
            assert time.monotonic() - start < 20.0
            client.close()


@pytest.mark.parametrize("shell", ["blocking", "asyncio"])
def test_server_that_starts_late(shell: str) -> None:
    port = free_port()
    client: Any = (critiq.Client if shell == "blocking" else Blocking)(f"127.0.0.1:{port}")
    behaviour = Behaviour(state="loading")
    threading.Timer(1.0, lambda: setattr(behaviour, "state", "ready")).start()
    waiter = threading.Thread(target=client.wait_ready, args=(120.0,))
    waiter.start()
    time.sleep(0.3)
    with fake_server.running(behaviour, grpc_port=port):
        waiter.join(120)
        assert not waiter.is_alive()
        assert behaviour.state == "ready"
        assert client.score(PICTURE).scores
        client.close()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, critiq.InvalidArgument),
        (401, critiq.Unauthenticated),
        (403, critiq.PermissionDenied),
        (404, critiq.NotFound),
        (413, critiq.TooLarge),
        (418, critiq.InvalidArgument),
        (429, critiq.TooBusy),
        (500, critiq.Internal),
        (502, critiq.Unavailable),
        (503, critiq.Unavailable),
        (504, critiq.DeadlineExceeded),
        (599, critiq.Internal),
        (200, critiq.Internal),
    ],
)
def test_answers_of_proxies(server: FakeServer, status: int, kind: type[critiq.CritiqError]) -> None:
    server.behaviour.bare_status = status
    with critiq.Client(server.http_url, retries=0) as client, pytest.raises(critiq.CritiqError) as caught:
        client.models()
    assert type(caught.value) is kind
    assert caught.value.retry_after == (None if status == 200 else 1.0)


@pytest.mark.parametrize(
    "url", ["ftp://host", "localhost:port", "", "http://", "host:1/path", "grpc://user@host:99999", "://x"]
)
def test_urls_that_mean_nothing(url: str) -> None:
    with pytest.raises(critiq.InvalidArgument, match=r"^url:"):
        critiq.Client(url)


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("localhost", "localhost:8001"),
        ("grpc://scorer:9", "scorer:9"),
        ("grpcs://scorer", "scorer:8001"),
        ("[::1]:8001", "[::1]:8001"),
        ("unix:/run/critiq.sock", "unix:/run/critiq.sock"),
        ("https://scorer/under/", "https://scorer/under"),
    ],
)
def test_urls(url: str, target: str) -> None:
    with critiq.Client(url) as client:
        assert client.url == target


def test_closed_client(connect: Any) -> None:
    client = connect()
    client.models()
    client.close() if isinstance(client, critiq.Client) else client._wait(client._client.close())
    with pytest.raises(critiq.Cancelled):
        client.models()


def test_one_client_for_many_threads(server: FakeServer, transport: str) -> None:
    with critiq.Client(server.url(transport)) as client:
        failures: list[BaseException] = []

        def work(value: int) -> None:
            try:
                for _ in range(20):
                    raw = client.score(np.full((4, 5, 3), value, np.uint8))["visual_quality"].raw
                    assert raw == pytest.approx(value / 255)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(value,)) for value in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert not failures


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
