"""critiq on a real Ray: answers, errors, the store that replicas share, and what a replica's death costs."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

import critiq
from critiq_server.security.keys import append, new_key
from tests.support.bundles import write_bundle, write_simulated
from tests.support.ray_cluster import RayCritiq, listener, ray_critiq
from tests.support.redis_server import redis_server

pytest.importorskip("ray", reason="Ray is not installed (pip install 'critiq[ray]')")
pytestmark = pytest.mark.slow

FACES = ("grpc", "rest")
RETRYABLE = {"OK", "UNAVAILABLE"}
numbers = count()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCritiq]:
    """Two replicas that share a Redis, with a model that is quick and one that takes a second for four pictures."""
    folder = tmp_path_factory.mktemp("ray")
    write_bundle(folder)
    write_simulated(folder, batch_ms=1000.0, max_batch=4)
    text, key = new_key("tests", ["score", "models", "metrics"])
    append(folder / "keys.yaml", key)
    scorer: dict[str, Any] = {
        "ray_actor_options": {"num_cpus": 0.3},
        "autoscaling_config": {
            "min_replicas": 2,
            "max_replicas": 3,
            "target_ongoing_requests": 8,
            "upscale_delay_s": 1,
            "look_back_period_s": 2,
            "metrics_interval_s": 0.5,
        },
    }
    with redis_server() as redis:
        settings: dict[str, Any] = {
            "models": {"directories": [str(folder)], "default": "tiny", "load": ["tiny", "simulated"]},
            "security": {"keys_file": str(folder / "keys.yaml")},
            "features": {"redis": {"url": redis.url, "timeout_ms": 2000}, "also": ["tiny/*"]},
        }
        with ray_critiq(folder, settings, scorer, text) as found:
            found.wait_for_replicas(2, 60)
            yield found


def picture() -> np.ndarray[Any, Any]:
    """One that nobody has seen before."""
    number = next(numbers)
    return np.full((24, 24, 3), (number % 256, number // 256 % 256, 7), np.uint8)


def connect(running: RayCritiq, url: str, **options: Any) -> critiq.Client:
    """Our own client, with the key."""
    return critiq.Client(url, api_key=running.key, **options)


def url_of(running: RayCritiq, face: str) -> str:
    return running.grpc if face == "grpc" else running.rest


@pytest.mark.parametrize("face", FACES)
def test_the_ingress_answers_our_own_client(running: RayCritiq, face: str) -> None:
    grey = np.full((20, 20, 3), 51, np.uint8)
    with connect(running, url_of(running, face), retries=0) as client:
        result = client.score(grey, "a red cat")
        assert result["brightness"].raw == pytest.approx(0.2)
        assert result["wordiness"].raw == pytest.approx(0.2 * 5)
        batch = client.score_batch([grey, b"no picture", grey + 102])
        assert [entry.error is None for entry in batch] == [True, False, True]
        assert batch[1].error is not None
        assert batch[1].error.code == "INVALID_ARGUMENT"
        assert batch[2].unwrap()["brightness"].raw == pytest.approx(0.6)
        streamed = {entry.id: entry.unwrap() for entry in client.score_stream([picture() for _ in range(30)])}
        assert set(streamed) == {str(number) for number in range(30)}
        assert [entry.index for entry in client.rank([grey, grey + 102], dimension="brightness").ranking] == [1, 0]
        assert client.compare(grey, grey + 102).comparisons[0].preference == "second"
        assert {model.name for model in client.models() if model.state == "ready"} == {"tiny", "simulated"}
        assert client.policies() is not None


def metadata(running: RayCritiq) -> list[tuple[str, str]]:
    return list(running.headers.items())


@pytest.mark.parametrize("face", FACES)
def test_keys_are_asked_for_behind_the_ingress(running: RayCritiq, face: str) -> None:
    for key, said in (("", "needs an API key"), ("critiq_0_no", "not known")):
        stranger = critiq.Client(url_of(running, face), api_key=key, retries=0)
        with stranger, pytest.raises(critiq.Unauthenticated, match=said):
            stranger.score(picture())
    assert httpx.get(f"{running.rest}/v1/replicas").status_code == 401


@pytest.mark.parametrize("face", FACES)
def test_errors_are_those_of_any_server(running: RayCritiq, face: str) -> None:
    with connect(running, url_of(running, face), retries=0) as client:
        with pytest.raises(critiq.NotFound, match="no model 'none'"):
            client.score(picture(), model="none")
        with pytest.raises(critiq.InvalidArgument, match="no picture") as refused:
            client.score(b"no picture")
        assert refused.value.field == "image.encoded"
        with pytest.raises(critiq.FailedPrecondition, match="one replica of many"):
            client.submit_job([picture()])
        with pytest.raises(critiq.FailedPrecondition, match="one replica of many"):
            client.load_model("tiny")


def test_a_method_that_no_replica_has_is_unimplemented(running: RayCritiq) -> None:
    with grpc.insecure_channel(running.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/critiq.v1.Scoring/Nothing")(b"", metadata=metadata(running), timeout=60)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_text_that_is_no_utf8_is_the_callers_fault(running: RayCritiq) -> None:
    with grpc.insecure_channel(running.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary("/critiq.v1.Models/Get")(b"\x0a\x01\xff", metadata=metadata(running), timeout=60)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_a_stream_that_the_replica_ends_keeps_its_reason(running: RayCritiq) -> None:
    from critiq.v1 import scoring_pb2

    item = scoring_pb2.ScoreItem(id="").SerializeToString()
    with grpc.insecure_channel(running.grpc) as channel, pytest.raises(grpc.RpcError) as refused:
        list(
            channel.stream_stream("/critiq.v1.Scoring/ScoreStream")(
                iter([item] * 20), metadata=metadata(running), timeout=120
            )
        )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "the id '' is empty" in refused.value.details()


@pytest.mark.parametrize("face", FACES)
def test_deadlines_reach_the_replica(running: RayCritiq, face: str) -> None:
    before = _unanswered(running)
    with connect(running, url_of(running, face), retries=0) as client, pytest.raises(critiq.DeadlineExceeded):
        client.score(picture(), model="simulated", timeout=0.4)
    until = time.monotonic() + 60
    while _unanswered(running) == before:
        assert time.monotonic() < until, "the replica computes on for nobody"
        time.sleep(0.1)


def _unanswered(running: RayCritiq) -> float:
    """Calls that the replicas gave up, by their own metrics, which Prometheus finds through the directory."""
    found = 0.0
    for target in httpx.get(f"{running.rest}/v1/replicas/prometheus", headers=running.headers).json():
        text = httpx.get(f"http://{target['targets'][0]}/metrics", headers=running.headers).text
        for line in text.splitlines():
            if line.startswith("critiq_requests_total") and ("CANCELLED" in line or "DEADLINE" in line):
                found += float(line.rpartition(" ")[2])
    return found


def test_what_one_replica_computed_is_there_for_the_other(running: RayCritiq) -> None:
    first, second = running.replicas()[:2]
    assert listener(first) != listener(second)
    seen = picture()
    with connect(running, first["grpc"]) as one, connect(running, second["grpc"]) as two:
        assert not one.score(seen)["brightness"].from_store
        until = time.monotonic() + 60  # it is written behind the answer
        while not (again := two.score(seen.copy()))["brightness"].from_store:
            assert time.monotonic() < until
            seen = picture()
            one.score(seen)
            time.sleep(0.3)
        assert again["brightness"].raw == pytest.approx(float(seen.mean()) / 255, abs=1e-5)


def test_direct_calls_pass_the_ingress_by(running: RayCritiq) -> None:
    for replica in running.replicas():
        with connect(running, replica["grpc"]) as direct, connect(running, f"http://{replica['rest']}") as rest:
            assert direct.score(picture()).image.width == rest.score(picture()).image.width == 24


class Load:
    """Callers that send one call after the other and note how each ended."""

    def __init__(self) -> None:
        self.outcomes: Counter[str] = Counter()
        self.sent = 0
        self.hints = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def run(self, call: Callable[[], object]) -> None:
        """Until :meth:`stop`."""
        while not self._stop.is_set():
            with self._lock:
                self.sent += 1
            outcome, hinted = "OK", False
            try:
                call()
            except critiq.CritiqError as error:
                outcome = error.code
                hinted = error.retry_after is not None
            with self._lock:
                self.outcomes[outcome] += 1
                self.hints += outcome != "OK" and hinted
            if outcome != "OK":
                time.sleep(0.05)

    def stop(self) -> None:
        self._stop.set()


def slowly(pictures: int) -> Iterator[np.ndarray[Any, Any]]:
    """A stream's pictures, ten a second."""
    for _ in range(pictures):
        time.sleep(0.1)
        yield picture()


def wait_until_it_holds(running: RayCritiq, replica: dict[str, str], pictures: int) -> None:
    """Returns when a replica has so many accepted and not answered."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        text = httpx.get(f"http://{replica['metrics']}/metrics", headers=running.headers).text
        if float(text.partition("\ncritiq_in_flight ")[2].split()[0]) >= pictures:
            return
    raise AssertionError("the replica gets no calls")


def test_a_killed_replica_costs_what_it_held_and_no_more(running: RayCritiq) -> None:
    replica = running.wait_for_replicas(2, 60)[0]
    victim = listener(replica)
    hurried, patient = Load(), Load()
    clients = [connect(running, url_of(running, face), retries=0, timeout=30) for face in FACES for _ in range(3)]
    trying = [connect(running, url_of(running, face), retries=8, timeout=60) for face in FACES]
    streaming = connect(running, running.grpc, retries=8, timeout=60)
    with ThreadPoolExecutor(12) as pool:
        futures = [
            *(pool.submit(hurried.run, lambda c=client: c.score(picture(), model="simulated")) for client in clients),
            *(pool.submit(patient.run, lambda c=client: c.score(picture(), "a cat")) for client in trying),
        ]
        answers = pool.submit(lambda: list(streaming.score_stream(slowly(60))))
        wait_until_it_holds(running, replica, 2)
        os.kill(victim, signal.SIGKILL)
        killed = time.monotonic()
        time.sleep(5)
        hurried.stop()
        patient.stop()
        for future in futures:
            future.result(60)
        streamed = answers.result(60)
    for client in (*clients, *trying, streaming):
        client.close()
    print(f"sent {hurried.sent}: {dict(hurried.outcomes)}; with retries {patient.sent}: {dict(patient.outcomes)}")
    assert hurried.sent == sum(hurried.outcomes.values())
    assert set(hurried.outcomes) == {"OK", "UNAVAILABLE"}
    assert hurried.hints == hurried.outcomes["UNAVAILABLE"] <= 3 * len(clients)
    assert set(patient.outcomes) == {"OK"}
    assert sorted(int(entry.id) for entry in streamed) == list(range(60))
    assert all(entry.error is None for entry in streamed)
    running.wait_for_replicas(2, 60, without=victim)
    print(f"two replicas again {time.monotonic() - killed:.1f} s after the kill")
    with connect(running, running.grpc, retries=0) as client:
        assert all(client.score(picture(), "a cat").image.width == 24 for _ in range(10))


def test_direct_pictures_bring_another_replica(running: RayCritiq) -> None:
    load = Load()
    clients = [connect(running, replica["grpc"]) for replica in running.wait_for_replicas(2, 60)[:2]]
    with ThreadPoolExecutor(2) as pool:
        for client in clients:
            pool.submit(load.run, lambda c=client: c.score_batch([picture() for _ in range(24)], model="simulated"))
        try:
            running.wait_for_replicas(3, 40)
        finally:
            load.stop()
    for client in clients:
        client.close()
    assert set(load.outcomes) == {"OK"}


def test_stopping_answers_what_replicas_hold(running: RayCritiq) -> None:
    """The last one: afterwards nothing runs."""
    replicas = running.replicas()
    clients = [connect(running, replica["grpc"], retries=0) for replica in replicas]
    with ThreadPoolExecutor(len(clients)) as pool:
        work = [pool.submit(client.score_batch, [picture() for _ in range(8)], model="simulated") for client in clients]
        time.sleep(0.4)  # two seconds of work each
        os.kill(running.pid, signal.SIGINT)
        results = [entry for future in work for entry in future.result(60)]
    for client in clients:
        client.close()
    assert len(results) == 8 * len(replicas)
    assert all(entry.error is None for entry in results)
