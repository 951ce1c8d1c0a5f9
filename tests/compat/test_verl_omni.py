"""A client that behaves as verl-omni's: one picture a request, the whole batch at once, two retries of 408, 429 and
5xx, ``{"error": text}`` a failure whatever the status."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.compat.trainers import jpeg, rest, slow_server, trainer_server
from tests.support.gates import held
from tests.support.waiting import until


async def compute_score(session: aiohttp.ClientSession, url: str, image: bytes, prompt: str = "") -> float:
    body = pickle.dumps({"images": [image], "prompts": [prompt], "metadata": {}})
    for attempt in range(3):
        async with session.post(url, data=body) as response:
            data = await response.read()
            if (response.status in (408, 429) or response.status >= 500) and attempt < 2:
                await asyncio.sleep(0.05 * 2**attempt)
                continue
        try:
            answer: dict[str, Any] = pickle.loads(data)  # noqa: S301 - what this client does
        except (pickle.UnpicklingError, EOFError):
            answer = {"error": data.decode()}
        if response.status != 200 or "error" in answer:
            raise RuntimeError(f"{response.status}: {answer.get('error')}")
        return float(answer["scores"][0])
    raise AssertionError


async def test_the_first_score_is_the_pictures(tmp_path: Path) -> None:
    async with trainer_server(tmp_path, pickle={"enabled": True}) as app, aiohttp.ClientSession() as session:
        url = rest(app) + "/compat/pickle"
        assert await compute_score(session, f"{url}/bright", jpeg(51)) == pytest.approx(0.2, abs=1e-3)
        assert await compute_score(session, f"{url}/rank", jpeg(51)) == pytest.approx(20, abs=0.1)
        assert await compute_score(session, f"{url}/words", jpeg(255), "a cat") == pytest.approx(4, abs=1e-3)
        # A dimension of the default model needs no entry in the settings.
        assert await compute_score(session, f"{url}/brightness", jpeg(51)) == pytest.approx(0.2, abs=1e-3)


async def test_what_lasts_fails_at_once_and_says_why(tmp_path: Path) -> None:
    async with trainer_server(tmp_path, pickle={"enabled": True}) as app, aiohttp.ClientSession() as session:
        url = rest(app) + "/compat/pickle"
        with pytest.raises(RuntimeError, match=r"400: images\[0\]"):
            await compute_score(session, f"{url}/bright", b"no picture")
        with pytest.raises(RuntimeError, match=r"400: .*needs the prompt"):
            await compute_score(session, f"{url}/words", jpeg())
        with pytest.raises(RuntimeError, match=r"400: .*no reward 'beauty'; there are bright, words"):
            await compute_score(session, f"{url}/beauty", jpeg())


async def test_overload_is_tried_again(tmp_path: Path) -> None:
    async with slow_server(tmp_path, {"in_flight": 1, "batch_items": 1}, pickle={"enabled": True}) as app:
        url = rest(app) + "/compat/pickle/red"
        async with aiohttp.ClientSession() as session:
            with held(app, "device") as gate:
                blocking = asyncio.create_task(compute_score(session, url, jpeg(9)))
                await until(lambda: app.service.admission.items == 1)
                with pytest.raises(RuntimeError, match="503: the server has 1 pictures"):
                    await compute_score(session, url, jpeg(10))
                assert app.metrics.registry.get_sample_value("critiq_rejected_total", {"reason": "TOO_BUSY"}) == 3
                gate.release()
                await blocking


async def test_a_batch_of_single_requests_rides_together(tmp_path: Path) -> None:
    async with slow_server(tmp_path, {}, pickle={"enabled": True}) as app, aiohttp.ClientSession() as session:
        url = rest(app) + "/compat/pickle/red"
        levels = [64 + index for index in range(64)]
        scores = await asyncio.gather(*(compute_score(session, url, jpeg(level)) for level in levels))
        assert scores == pytest.approx([level / 255 for level in levels], abs=5e-3)
        labels = {"model": "simulated", "stage": "device"}
        batches = app.metrics.registry.get_sample_value("critiq_batch_size_count", labels)
        assert batches is not None
        assert batches < 32, f"64 pictures in {batches:g} batches"


async def test_a_caller_that_hangs_up_is_not_computed_for(tmp_path: Path) -> None:
    async with slow_server(tmp_path, {}, pickle={"enabled": True}) as app:
        url = rest(app) + "/compat/pickle/red"
        async with aiohttp.ClientSession() as session:
            with held(app, "device") as gate:
                first = asyncio.create_task(compute_score(session, url, jpeg(9)))
                await until(lambda: gate.computed == 1)
                leaving = asyncio.create_task(compute_score(session, url, jpeg(10)))
                await until(lambda: app.service.admission.items == 2)
                leaving.cancel()
                await until(lambda: app.service.admission.items == 1)
                gate.release()
                await first
            assert gate.computed == 1
