"""Profiles of a real server, and where its threads stand."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

import critiq
from critiq_server.app import App, StartError
from critiq_server.images.source import EncodedImage
from critiq_server.queries import Query
from critiq_server.security.keys import append, new_key
from tests.support.bundles import write_bundle, write_simulated
from tests.support.gates import held
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

PROMPT = "a cat that nobody may see in a profile"
PROFILE, THREADS = "/v1/admin/profile", "/v1/admin/threads"


@asynccontextmanager
async def serving(root: Path, default: str = "tiny", **sections: Any) -> AsyncIterator[tuple[App, httpx.AsyncClient]]:
    settings = make_settings(root, default=default, **{"telemetry": {"profiling": True}, **sections})
    async with (
        running(settings) as app,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}", timeout=120) as http,
    ):
        yield app, http


async def test_a_profile_shows_what_the_event_loop_does_and_no_values(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with serving(tmp_path) as (app, http):
        found = {}
        for form in ("text", "speedscope", "html"):
            profiling = asyncio.ensure_future(http.post(PROFILE, params={"seconds": 0.3, "format": form}))
            level = 0
            while not profiling.done():
                await app.service.score(Query(EncodedImage(flat(level % 250)), PROMPT))
                level += 1
                await asyncio.sleep(0)  # what is stored is answered without a pause
            found[form] = await profiling
        assert all(answer.status_code == 200 for answer in found.values()), found
        assert "evaluate" in found["text"].text  # of the engine, for another task than the one that asked
        assert found["text"].headers["content-type"].startswith("text/plain")
        profile = json.loads(found["speedscope"].text)
        assert profile["profiles"]
        assert "_judged" in {frame["name"] for frame in profile["shared"]["frames"]}
        assert found["html"].text.startswith("<!DOCTYPE html>")
        assert not [answer for answer in found.values() if PROMPT in answer.text]


async def test_threads_and_tasks_are_shown_where_they_stand(tmp_path: Path) -> None:
    write_simulated(tmp_path)
    async with serving(tmp_path, "simulated") as (app, http):
        with held(app, "device") as gate:
            calls = [asyncio.ensure_future(app.service.score(Query(EncodedImage(flat(at)), PROMPT))) for at in (1, 2)]
            await until(lambda: gate.batcher.running == 1 and gate.batcher.waiting == 1)
            shown = ""
            for _ in range(200):  # the batch is begun before its thread runs
                shown = (await http.get(THREADS)).text
                if "_wait_and_run" in shown:
                    break
            gate.release()
            await asyncio.gather(*calls)
    assert "thread critiq-device" in shown
    assert "_wait_and_run" in shown  # where the device's thread is held
    assert "2 tasks waiting" in shown
    assert "Answering._judged" in shown
    assert PROMPT not in shown


async def test_bad_asks_get_definite_answers(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with serving(tmp_path) as (_, http):
        for params, field in (
            ({"seconds": "0"}, "seconds"),
            ({"seconds": "61"}, "seconds"),
            ({"seconds": "nan"}, "seconds"),
            ({"seconds": "five"}, "seconds"),
            ({"seconds": "0.1", "format": "pdf"}, "format"),
        ):
            answer = await http.post(PROFILE, params=params)
            assert (answer.status_code, answer.json()["error"]["field"]) == (400, field)
        first = asyncio.ensure_future(http.post(PROFILE, params={"seconds": 1.0, "format": "text"}))
        await asyncio.sleep(0.1)
        second = await http.post(PROFILE)
        assert (second.status_code, second.json()["error"]["code"]) == (429, "TOO_BUSY")
        assert (await first).status_code == 200
        foreign = await http.post(PROFILE, headers={"sec-fetch-site": "cross-site"})
        assert foreign.status_code == 403
        with pytest.raises(httpx.ReadTimeout):
            await http.post(PROFILE, params={"seconds": 30}, timeout=0.2)
        # Who hangs up does not keep others waiting.
        while (again := await http.post(PROFILE, params={"seconds": 0.1})).status_code == 429:
            assert again.json()["error"]["retry_after_ms"] > 20_000
            await asyncio.sleep(0.05)
        assert again.status_code == 200


async def test_off_unless_the_settings_say_so_and_of_a_scope_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bundle(tmp_path)
    async with serving(tmp_path, telemetry={}) as (_, http):
        for answer in (await http.post(PROFILE), await http.get(THREADS)):
            assert answer.status_code == 403
            assert "telemetry.profiling" in answer.json()["error"]["message"]
    keys = {}
    for name, scopes in (("other", ("score", "models", "metrics")), ("admin", ("admin",))):
        keys[name], entry = new_key(name, scopes)
        append(tmp_path / "keys.yaml", entry)
    async with serving(tmp_path, security={"keys_file": tmp_path / "keys.yaml"}) as (app, http):
        value, labels = app.metrics.registry.get_sample_value, {"call": "threads", "outcome": "OK"}
        before = value("critiq_audits_total", labels) or 0.0
        for name, status in (("other", 403), ("admin", 200)):
            answer = await http.get(THREADS, headers={"x-api-key": keys[name]})
            assert answer.status_code == status
        assert (await http.get(THREADS)).status_code == 401
        assert value("critiq_audits_total", labels) == before + 1
        with pytest.raises(critiq.PermissionDenied):
            async with critiq.AsyncClient(f"127.0.0.1:{app.grpc_port}", api_key=keys["admin"]) as client:
                await client.score(flat(1))
    monkeypatch.setitem(sys.modules, "pyinstrument", None)
    with pytest.raises(StartError, match="pyinstrument is not installed"):
        await App(make_settings(tmp_path, telemetry={"profiling": True})).start()
