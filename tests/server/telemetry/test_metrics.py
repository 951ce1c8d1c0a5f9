"""The metrics: documented as they are, of bounded labels, and telling what they say they tell."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

import critiq
from critiq_server.api.metrics import metrics_app
from critiq_server.app import App
from critiq_server.engine.demand import Priority
from critiq_server.images.source import RawImage
from critiq_server.queries import Query, Target
from critiq_server.security.keys import append, new_key
from critiq_server.telemetry.counters import CallerLabels
from critiq_server.telemetry.gpu import GpuCollector
from tests.server.telemetry.exported import Exported, exported
from tests.support.bundles import write_bundle, write_simulated
from tests.support.gates import held
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

PAGE = Path(__file__).parents[3] / "docs/metrics.md"
ROW = re.compile(r"^\| `([a-z_]+)` \| (\w+) \| ([^|]*) \| ([^|]*) \| (.+?) \| `(.+)` \|$", re.M)
PROMQL_WORDS = {"sum", "rate", "by", "histogram_quantile", "increase", "avg_over_time", "max", "count", "topk", "time"}


class NoGpus:
    """The driver of a machine without GPUs."""

    NVMLError = RuntimeError

    @staticmethod
    def nvmlDeviceGetCount() -> int:  # noqa: N802 - its name in NVML
        return 0


def rows() -> dict[str, tuple[Exported, str]]:
    """What the page says of each metric, and its example."""
    found = {}
    for name, kind, _, labels, _, query in ROW.findall(PAGE.read_text()):
        assert name not in found, f"{name} is on the page twice"
        found[name] = (Exported(name, kind, tuple(re.findall("`([a-z]+)`", labels))), query.replace(r"\|", "|"))
    return found


async def test_the_page_and_a_server_name_the_same_metrics(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with running(make_settings(tmp_path)) as app:
        app.metrics.registry.register(GpuCollector(NoGpus))
        there = {entry.name: entry for entry in exported(app.metrics.registry)}
    written = {name: entry for name, (entry, _) in rows().items()}
    assert set(there) - set(written) == set(), "docs/metrics.md lacks these"
    assert set(written) - set(there) == set(), "docs/metrics.md has these, and no server does"
    assert written == there


def test_examples_are_of_metrics_and_labels_that_there_are(tmp_path: Path) -> None:
    page = rows()
    families = {re.sub("_total$", "", name): entry for name, (entry, _) in page.items()}
    for name, (_, query) in page.items():
        assert re.sub("_total$", "", name) in query, f"{name}'s example is of something else"
        bare = re.sub(r'"[^"]*"', "", query)
        words = set(re.findall(r"[a-z_]{2,}", re.sub(r"\[\w+\]", "", bare)))
        stripped = (word if word in families else re.sub("_(total|bucket|sum|count)$", "", word) for word in words)
        used = [families[word] for word in stripped if word in families]
        names = {word for word in words if word.startswith(("critiq_", "process_"))}
        assert len(used) == len(names), f"{query} names a metric that is not there"
        labels = {label for entry in used for label in entry.labels} | {"le"}
        assert words - names - PROMQL_WORDS <= labels, f"{query} names a label that is not there"
    if shutil.which("promtool") is None:
        pytest.skip("promtool (Debian's package prometheus) is not installed")
    rules = [f"      - record: example:{number}\n        expr: >-\n          {query}" for number, (_, query) in
             enumerate(page.values())]  # fmt: skip
    file = tmp_path / "rules.yaml"
    file.write_text("groups:\n  - name: examples\n    rules:\n" + "\n".join(rules))
    checked = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def series(app: App) -> set[tuple[str, tuple[tuple[str, str], ...]]]:
    return {
        (sample.name, tuple(sorted(sample.labels.items())))
        for family in app.metrics.registry.collect()
        for sample in family.samples
    }


async def test_callers_cannot_make_series(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    policy = {"target": {"model": "tiny"}}
    async with running(make_settings(tmp_path, jobs={"path": tmp_path / "jobs.db"})) as app:
        grpc, rest = critiq.AsyncClient(f"127.0.0.1:{app.grpc_port}"), f"http://127.0.0.1:{app.rest_port}"
        async with grpc, httpx.AsyncClient(base_url=rest) as http:

            async def flood(number: int) -> None:
                made_up = f"nobody-{number}-{'x' * number}"
                picture = bytes([number]) * 768
                for target in (Target(made_up), Target("tiny", made_up), Target("tiny", "", (made_up,))):
                    query = Query(RawImage(picture, (16, 16, 3)), "a cat", target, Priority.INTERACTIVE)
                    with pytest.raises(critiq.CritiqError):
                        await app.service.score(query)
                calls: list[Any] = [
                    grpc.score(b"no picture", model=made_up),
                    grpc.load_model(made_up),
                    grpc.moderate(b"no picture", policy=made_up),
                    grpc.rank([b"one", b"two"], model=made_up),
                ]
                for call in calls:
                    with pytest.raises(critiq.CritiqError):
                        await call
                await http.post("/v1/score", json={**policy, "image": made_up})
                await http.get(f"/v1/models/{made_up}")
                await http.post(f"/v1/models/{made_up}/load")
                await http.request(f"NO{number}", f"/{made_up}", headers={"x-api-key": made_up})
                await http.post(f"/v2/models/{made_up}/infer", json={})
                await http.get(f"/v1/jobs/{made_up}")

            await grpc.score(flat(7))
            await flood(1)
            await flood(2)
            before = series(app)
            for number in range(3, 23):
                await flood(number)
        after = series(app)
    assert after - before == set()
    assert not [entry for entry in after if "nobody" in str(entry)]


async def test_many_callers_share_a_label() -> None:
    labels = CallerLabels(most=2)
    kept = [labels(f"test-subject-{number}") for number in range(5)]
    assert len({id(counter) for counter in kept}) == 3
    assert labels("test-subject-0") is kept[0]


async def test_queues_show_what_waits_and_what_runs(tmp_path: Path) -> None:
    write_simulated(tmp_path, max_batch=1)
    async with running(make_settings(tmp_path, default="simulated")) as app:
        value = app.metrics.registry.get_sample_value
        stage = {"model": "simulated", "stage": "device"}
        with held(app, "device") as gate:
            queries = [Query(RawImage(bytes([level]) * 768, (16, 16, 3))) for level in range(4)]
            calls = [asyncio.ensure_future(app.service.score(query)) for query in queries]
            await until(lambda: value("critiq_queue_length", stage) == 3)
            assert value("critiq_batches_running", stage) == 1
            assert value("critiq_in_flight") == 4
            gate.release()
            await asyncio.gather(*calls)
        assert value("critiq_queue_length", stage) == 0
        assert value("critiq_batches_running", stage) == 0
        assert value("critiq_batches_running_limit", stage) == 1
        assert value("critiq_batch_size_limit", stage) == 1
        assert value("critiq_worker_threads_busy") == 0
        assert value("critiq_image_decode_wait_seconds_count") == 4
        assert value("critiq_request_bytes_sum") == 4 * 768


async def test_a_server_tells_of_itself(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    write_bundle(tmp_path, name="wrong", expected_shift=0.5)
    async with running(make_settings(tmp_path)) as app:
        value = app.metrics.registry.get_sample_value
        (build,) = (family for family in app.metrics.registry.collect() if family.name == "critiq_build_info")
        assert build.samples[0].labels["version"][0].isdigit()
        with pytest.raises(critiq.FailedPrecondition):
            await app.service.registry.load("wrong")
        assert value("critiq_model_loads_total", {"model": "tiny", "outcome": "loaded"}) == 1
        assert value("critiq_model_loads_total", {"model": "wrong", "outcome": "refused"}) == 1
        assert (value("critiq_model_load_seconds", {"model": "tiny"}) or 0) > 0
        assert value("critiq_model_load_seconds", {"model": "wrong"}) is None
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}") as http:
            await http.get("/healthz")
            assert value("critiq_connections", {"port": "rest"}) == 1
            before = value("critiq_errors_total", {"face": "rest", "code": "INVALID_ARGUMENT"}) or 0
            await http.post("/v1/score", content=b"{", headers={"Content-Type": "application/json"})
            assert value("critiq_errors_total", {"face": "rest", "code": "INVALID_ARGUMENT"}) == before + 1
        await until(lambda: (value("critiq_event_loop_lag_seconds_count") or 0) > 0)


async def test_callers_are_counted_by_the_name_of_their_key(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    text, key = new_key("metrics-test", ["score"], requests_per_second=2)
    append(tmp_path / "keys.yaml", key)
    other, models_key = new_key("metrics-test-models", ["models"])
    append(tmp_path / "keys.yaml", models_key)
    async with running(make_settings(tmp_path, security={"keys_file": tmp_path / "keys.yaml"})) as app:
        value = app.metrics.registry.get_sample_value

        def refusals() -> list[float]:
            reasons = ("missing", "unknown", "scope", "limit")
            return [value("critiq_caller_refusals_total", {"reason": reason}) or 0.0 for reason in reasons]

        before, audits = refusals(), {"call": "unload", "outcome": "PERMISSION_DENIED"}
        audited = value("critiq_audits_total", audits) or 0.0
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}") as http:
            for sent in ("", "wrong", other, *[text] * 4):
                await http.post("/v1/compare", headers={"x-api-key": sent} if sent else {})
            await http.post("/v1/models/tiny/unload", headers={"x-api-key": other})
        assert [after - old for after, old in zip(refusals(), before, strict=True)] == [1, 1, 1, 2]
        assert value("critiq_caller_calls_total", {"caller": "metrics-test"}) == 2
        assert value("critiq_audits_total", audits) == audited + 1


async def test_scores_are_told_apart_by_version(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    write_bundle(tmp_path, version="2", bias=0.25)
    async with running(make_settings(tmp_path, models={"load": ("tiny:1", "tiny:2")})) as app:
        for version in ("1", "2", "2"):
            await app.service.score(Query(RawImage(bytes([51]) * 768, (16, 16, 3)), "", Target("tiny", version)))
        counted = {
            version: app.metrics.registry.get_sample_value(
                "critiq_score_count", {"model": "tiny", "version": version, "dimension": "brightness"}
            )
            for version in ("1", "2")
        }
        assert counted == {"1": 1, "2": 2}


@pytest.mark.parametrize("accept", ["application/openmetrics-text; version=abc", 'text/plain; version="', ";;;"])
def test_a_scraper_that_asks_for_no_form_gets_the_usual_one(accept: str) -> None:
    answer = TestClient(metrics_app(CollectorRegistry())).get("/metrics", headers={"accept": accept})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
