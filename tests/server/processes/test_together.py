"""Answers of a group of processes: whichever is asked, they tell of the traffic of all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import httpx
import pytest

from critiq_server.app import App
from tests.support.bundles import write_bundle
from tests.support.group import grouped
from tests.support.requests import flat

pytestmark = pytest.mark.skipif(os.name == "nt", reason="several processes need Linux or macOS")


async def get(app: App, path: str, **query: str) -> Any:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}", timeout=20, trust_env=False) as http:
        answer = await http.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()


async def score(app: App, *levels: int) -> None:
    """Each with the picture's grey as level, a call each."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}", timeout=20, trust_env=False) as http:
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
