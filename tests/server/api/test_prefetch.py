"""Prefetch: pictures are taken on at once, computed later, found when they are scored."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from critiq import AsyncClient, InvalidArgument, TooBusy
from critiq.errors import NotFound, TooLarge
from critiq_server.app import App
from critiq_server.engine.demand import Priority
from tests.support.bundles import write_bundle
from tests.support.gates import Gate
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until


def fetched(app: App, code: str = "OK") -> float:
    labels = {"model": "tiny", "code": code}
    return app.metrics.registry.get_sample_value("critiq_prefetched_total", labels) or 0.0


async def done(app: App, count: int) -> None:
    await until(lambda: sum(fetched(app, code) for code in ("OK", "INVALID_ARGUMENT")) == count)


@pytest.mark.parametrize("scheme", ["", "http://"])
async def test_what_was_fetched_is_found_when_it_is_scored(tmp_path: Path, scheme: str) -> None:
    write_bundle(tmp_path)
    async with running(make_settings(tmp_path)) as app:
        port = app.rest_port if scheme else app.grpc_port
        async with AsyncClient(f"{scheme}127.0.0.1:{port}") as client:
            pictures = [(flat(level), "a red cat") for level in (10, 20)]
            taken = await client.prefetch([*pictures, b"no picture"], model="tiny")
            assert taken.accepted == 2
            assert [(entry.id, type(entry.error)) for entry in taken.refused] == [("2", InvalidArgument)]
            await done(app, 2)
            for picture, prompt in pictures:
                assert all(score.from_store for score in await client.score(picture, prompt))


async def test_the_answer_does_not_wait_for_the_work(tmp_path: Path) -> None:
    write_bundle(tmp_path, max_batch=1)
    async with running(make_settings(tmp_path)) as app, AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
        gate = Gate(app, "image_encoder")
        assert (await client.prefetch([flat(level) for level in range(1, 6)])).accepted == 5
        await until(lambda: gate.batcher.waiting > 0)
        assert fetched(app) == 0
        with app.service.registry.lease() as served:
            waiting = served.batchers["image_encoder"]
        assert {item.demand.priority for item in waiting._queue} == {Priority.BULK}  # type: ignore[union-attr]
        gate.release()
        await done(app, 5)


async def test_what_cannot_be_taken_on_is_refused(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    limits = {"in_flight": 3, "batch_items": 3}
    async with (
        running(make_settings(tmp_path, limits=limits)) as app,
        AsyncClient(f"127.0.0.1:{app.grpc_port}", retries=0) as client,
    ):
        taken = await client.prefetch([flat()], model="nobody")
        assert (taken.accepted, type(taken.refused[0].error)) == (0, NotFound)
        with pytest.raises(TooLarge, match="4 pictures in one call"):
            await client.prefetch([flat(level) for level in range(4)])
        gate = Gate(app, "image_encoder")
        assert (await client.prefetch([flat(level) for level in range(3)])).accepted == 3
        with pytest.raises(TooBusy, match="has 3 pictures"):
            await client.prefetch([flat(9)])
        gate.release()
        await done(app, 3)


async def test_a_picture_that_cannot_be_decoded_is_only_counted(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with running(make_settings(tmp_path)) as app, AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
        cut_short = flat(30)[:-20]
        assert (await client.prefetch([cut_short])).accepted == 1
        await done(app, 1)
        assert fetched(app, "INVALID_ARGUMENT") == 1


async def test_json_is_answered_in_json(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with running(make_settings(tmp_path)) as app, httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{app.rest_port}/v1/prefetch"
        body = (await http.post(url, json={"items": [{"image": {}}]})).json()
        assert body["accepted"] == 0
        assert body["refused"][0]["error"]["code"] == "INVALID_ARGUMENT"
