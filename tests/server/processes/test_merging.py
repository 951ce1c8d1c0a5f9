"""The sums of several processes' metrics: what counts never falls, and what all say is said once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.routing import Mount

from critiq_server.api.metrics import metrics_app
from critiq_server.processes import merging
from critiq_server.processes.merging import MergedMetrics


class Process:
    """Metrics behind a socket, as a serving process has them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.registry = CollectorRegistry()
        self.requests = Counter("critiq_requests", "Calls.", ["code"], registry=self.registry)
        self.seconds = Histogram("critiq_request_seconds", "Time.", buckets=(0.1, 1.0), registry=self.registry)
        self.in_flight = Gauge("critiq_in_flight", "Pictures.", registry=self.registry)
        self.model = Gauge("critiq_model_ready", "Served?", ["model"], registry=self.registry)
        self.jobs = Gauge("critiq_jobs", "Jobs.", ["state"], registry=self.registry)
        app = Starlette(routes=[Mount("/metrics", metrics_app(self.registry))])
        self.server = uvicorn.Server(uvicorn.Config(app, uds=str(path), log_config=None, lifespan="off"))
        self.thread = threading.Thread(target=self.server.run)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(10)


@pytest.fixture
def processes() -> Iterator[dict[str, Process]]:
    with TemporaryDirectory() as directory:  # a short path: sockets' names are limited
        found = {name: Process(Path(directory) / f"{name}.sock") for name in ("a", "b")}
        for process in found.values():
            process.thread.start()
        while not all(process.server.started for process in found.values()):
            threading.Event().wait(0.01)
        yield found
        for process in found.values():
            process.stop()


def merged(processes: dict[str, Process]) -> CollectorRegistry:
    registry = CollectorRegistry()
    members = {name: process.path for name, process in processes.items()}
    registry.register(MergedMetrics(lambda: {name: members[name] for name in processes}, lambda: set(processes)))
    return registry


def test_counters_and_histograms_are_summed(processes: dict[str, Process]) -> None:
    registry = merged(processes)
    processes["a"].requests.labels("OK").inc(3)
    processes["b"].requests.labels("OK").inc(4)
    processes["b"].requests.labels("TOO_BUSY").inc()
    processes["a"].seconds.observe(0.05)
    processes["b"].seconds.observe(0.5)
    assert registry.get_sample_value("critiq_requests_total", {"code": "OK"}) == 7
    assert registry.get_sample_value("critiq_requests_total", {"code": "TOO_BUSY"}) == 1
    assert registry.get_sample_value("critiq_request_seconds_bucket", {"le": "0.1"}) == 1
    assert registry.get_sample_value("critiq_request_seconds_bucket", {"le": "1.0"}) == 2
    assert registry.get_sample_value("critiq_request_seconds_count") == 2
    assert b"# TYPE critiq_request_seconds histogram" in generate_latest(registry)


def test_gauges_are_summed_but_for_what_every_process_says(processes: dict[str, Process]) -> None:
    registry = merged(processes)
    for process, pictures in zip(processes.values(), (2, 5), strict=True):
        process.in_flight.set(pictures)
        process.jobs.labels("queued").set(9)
    processes["a"].model.labels("tiny").set(1)
    processes["b"].model.labels("tiny").set(0)
    assert registry.get_sample_value("critiq_in_flight") == 7
    assert registry.get_sample_value("critiq_jobs", {"state": "queued"}) == 9
    assert registry.get_sample_value("critiq_model_ready", {"model": "tiny"}) == 0


def test_what_a_process_counted_stays_when_it_is_gone(processes: dict[str, Process]) -> None:
    registry = merged(processes)
    processes["a"].requests.labels("OK").inc(3)
    processes["b"].requests.labels("OK").inc(4)
    processes["b"].in_flight.set(2)
    assert registry.get_sample_value("critiq_requests_total", {"code": "OK"}) == 7
    processes.pop("b").stop()
    assert registry.get_sample_value("critiq_requests_total", {"code": "OK"}) == 7
    assert registry.get_sample_value("critiq_in_flight") == 0
    processes["a"].requests.labels("OK").inc()
    assert registry.get_sample_value("critiq_requests_total", {"code": "OK"}) == 8


def test_a_model_is_ready_only_where_every_process_that_serves_says_so(processes: dict[str, Process]) -> None:
    processes["a"].model.labels("tiny").set(1)
    assert merged(processes).get_sample_value("critiq_model_ready", {"model": "tiny"}) == 0
    only_a = CollectorRegistry()
    only_a.register(MergedMetrics(lambda: {name: process.path for name, process in processes.items()}, lambda: {"a"}))
    assert only_a.get_sample_value("critiq_model_ready", {"model": "tiny"}) == 1


def test_two_scrapes_at_once_around_a_death_count_once(
    processes: dict[str, Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = merged(processes)
    for process in processes.values():
        process.requests.labels("OK").inc(100)
    slow, ask = threading.Event(), merging._ask
    asked = threading.Event()

    def held(path: Path) -> str:
        text = ask(path)
        if path == gone.path:
            asked.set()
            slow.wait(5)
        return text

    gone = processes["a"]
    monkeypatch.setattr(merging, "_ask", held)
    first = threading.Thread(target=registry.get_sample_value, args=("critiq_requests_total", {"code": "OK"}))
    first.start()
    asked.wait(5)
    del processes["a"]
    second = threading.Thread(target=registry.get_sample_value, args=("critiq_requests_total", {"code": "OK"}))
    second.start()
    threading.Timer(0.2, slow.set).start()
    first.join()
    second.join()
    gone.stop()
    assert registry.get_sample_value("critiq_requests_total", {"code": "OK"}) == 200


def test_one_that_does_not_answer_keeps_what_it_counted(processes: dict[str, Process]) -> None:
    registry = merged(processes)
    processes["a"].requests.labels("OK").inc(3)
    processes["b"].requests.labels("OK").inc(4)
    assert registry.get_sample_value("critiq_requests_total", {"code": "OK"}) == 7
    processes["b"].stop()  # still on the list
    assert registry.get_sample_value("critiq_requests_total", {"code": "OK"}) == 7
