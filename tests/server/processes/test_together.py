"""Answers of a group of processes: whichever is asked, they tell of the traffic of all."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

import critiq
from critiq.types import Processes
from critiq_server.app import App
from tests.support.bundles import write_bundle
from tests.support.group import grouped
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(os.name == "nt", reason="several processes need Linux or macOS")


async def get(app: App, path: str, **query: str) -> Any:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}", timeout=120, trust_env=False) as http:
        answer = await http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def score(app: App, *levels: int) -> None:
    """Each with the picture's grey as level, a call each."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}", timeout=120, trust_env=False) as http:
        for level in levels:
            answer = await http.post("/v1/score", files={"image": flat(level)})
            assert answer.status_code == 200, answer.text


async def test_the_live_view_sums_what_all_count_and_names_who_is_missing(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with grouped(tmp_path) as (one, two):
        await score(one, 10, 20, 30)
        await score(two, 30, 40)
        for app in (one, two):
            found = await get(app, "/v1/live")
            assert found["processes"] == {"answered": 2, "of": 2, "missing": []}
            assert found["calls"] == [{"operation": "score", "model": "tiny", "code": "OK", "count": 5}]
            (brightness,) = (entry["values"] for entry in found["scores"] if entry["dimension"] == "brightness")
            assert brightness["sum"] == pytest.approx((10 + 20 + 30 + 30 + 40) / 255, abs=1e-3)
            assert sum(brightness["counts"]) == 5
            assert found["under_way"]["pictures_limit"] == 2 * one.settings.limits.in_flight
        await two.stop(2.0)
        found = await get(one, "/v1/live")
        assert found["processes"] == {"answered": 1, "of": 2, "missing": [1]}
        assert found["calls"][0]["count"] == 3


NOON = 1_800_014_400.0
DRIFT = {"check_seconds": 3600, "baseline_requests": 100, "least_count": 150, "allow_changes": True}


def levels(mean: float, count: int) -> list[int]:
    return [int(level) for level in np.clip(np.random.default_rng(count).normal(mean, 30, count), 0, 255)]


async def traffic(apps: Sequence[App], found: Sequence[int]) -> None:
    """The pictures in turns to each of ``apps``, at one moment."""
    for at, app in enumerate(apps):
        app.service.drift._monitor.now = lambda: NOON
        async with critiq.AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
            pictures = [(np.full((16, 16, 3), level, np.uint8), "a cat") for level in found[at :: len(apps)]]
            assert all(result.error is None for result in await client.score_batch(pictures))
        await app.service.drift.counted({"model": ""})  # what was collected enters the series


async def test_drift_of_two_processes_is_that_of_one_with_the_traffic_of_both(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    usual, brighter = levels(100, 160), levels(170, 220)
    async with grouped(tmp_path, drift=DRIFT) as pair, running(make_settings(tmp_path, drift=DRIFT)) as alone:
        for apps in (pair, [alone]):
            await traffic(apps, usual)
            await traffic(apps, brighter)
            for app in reversed(apps):
                await app.service.drift.look()
        expected = await get(alone, "/v1/drift")
        (brightness,) = (entry for entry in expected["series"] if entry["name"] == "brightness")
        assert (brightness["state"], brightness["count"], brightness["baseline"]["count"]) == ("alarm", 380, 160)
        assert brightness["windows"][-1]["count"] == 220, "no process has the 150 that are needed"
        assert expected.pop("processes") is None
        for app in pair:
            found = await get(app, "/v1/drift")
            assert found.pop("processes") == {"answered": 2, "of": 2, "missing": []}
            assert found == expected
        labels = {"model": "tiny", "version": "1", "label": "", "kind": "score", "name": "brightness"}
        alarms = [app.metrics.registry.get_sample_value("critiq_drift_alarm", labels) for app in (*pair, alone)]
        assert alarms == [2.0, None, 2.0], "the first looks for both"

        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{pair[1].rest_port}", trust_env=False) as http:
            few = await http.post("/v1/drift/baseline", json={"model": "tiny", "name": "format", "requests": 1000})
            assert [entry["state"] for entry in few.json()["series"]] == ["learning"]
            learning = [series for app in pair for *_, series in app.service.drift._monitor.all(name="format")]
            assert [(series.state, series.wanted) for series in learning] == [("learning", 500)] * 2
            new = await http.post("/v1/drift/baseline", json={"model": "tiny", "name": "brightness", "hours": 1})
            assert new.json()["processes"] == {"answered": 2, "of": 2, "missing": []}
            (entry,) = new.json()["series"]
            assert (entry["name"], entry["state"], entry["baseline"]["count"]) == ("brightness", "steady", 220)
            again = await http.post("/v1/drift/baseline", json={"model": "tiny", "name": "brightness", "hours": 1})
            assert "0 values since the last baseline, and 150 are needed" in again.json()["error"]["message"]
            nothing = await http.post("/v1/drift/baseline", json={"model": "tiny", "name": "nothing", "hours": 1})
            assert nothing.status_code == 404

        await pair[0].stop(2.0)
        left = await get(pair[1], "/v1/drift")
        assert left["processes"] == {"answered": 1, "of": 2, "missing": [0]}
        assert {entry["count"] for entry in left["series"]} == {190}
        await pair[1].service.drift.look()
        watched = {(series.name, series.state) for *_, series in pair[1].service.drift.watched()}
        assert ("pixels", "steady") in watched, "the next one looks"


async def test_a_shadows_report_is_of_all_processes_and_a_change_reaches_all(tmp_path: Path) -> None:
    for version, bias in (("1", 0.0), ("2", 0.2)):
        write_bundle(tmp_path, version=version, bias=bias)
    models = {"allow_changes": True, "aliases": {"live": {"targets": ["tiny:1"]}}, "load": ("tiny:1",)}
    async with grouped(tmp_path, models=models) as pair:
        urls = [f"127.0.0.1:{app.grpc_port}" for app in pair]
        async with critiq.AsyncClient(urls[0]) as one, critiq.AsyncClient(urls[1]) as two:
            await one.set_alias("live", ["tiny:1"], shadow="tiny:2=100")
            assert (await two.shadow_report("live")).scored == 0, "it is there at once, the candidate loaded"
            greys = levels(120, 40)
            for at, grey in enumerate(greys):
                await (one, two)[at % 3 == 0].score(flat(grey), "a cat", model="live")

            await until(lambda: sum(app.service.routing._agreement("live").scored for app in pair) == 40)
            report = await one.shadow_report("live")
            assert (report.scored, report.dropped, report.failed, report.processes) == (40, 0, 0, Processes(2, 2))
            assert (await two.shadow_report("live")).pairs[0].decisions == report.pairs[0].decisions
            (found,) = report.pairs
            (brightness,) = (entry for entry in found.dimensions if entry.dimension == "brightness")
            # Calibrated is raw / (1 + bias).
            served = np.array(greys) / 255
            candidate = (served + 0.2) / 1.2
            assert (brightness.count, brightness.window, brightness.srcc) == (40, 40, pytest.approx(1.0))
            assert brightness.served_mean == pytest.approx(served.mean(), abs=1e-4)
            assert brightness.difference_stddev == pytest.approx((candidate - served).std(ddof=1), abs=1e-4)

            await two.promote_alias("live")
            assert (await one.score(flat(3), model="live")).scores[0].model_version == "2"
            await one.set_alias("live", ["tiny:1"], shadow="tiny:2=100")
            await pair[1].stop(2.0)
            assert (await one.shadow_report("live")).processes == Processes(1, 2, (1,))
