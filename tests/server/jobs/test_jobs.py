"""Jobs on real servers, through the client: scored like anything else, kept, cancelled, taken up after a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

import critiq
from critiq_server.app import App
from critiq_server.listening import StartError
from tests.support.bundles import write_bundle, write_simulated
from tests.support.requests import flat, raw
from tests.support.servers import make_settings, running
from tests.support.waiting import until

POLICY = """
name: bright
version: "1"
rules:
  - name: dark
    when: {dimension: brightness, below: 0.5}
    decision: reject
"""


@dataclass
class Server:
    app: App
    grpc: critiq.AsyncClient
    rest: critiq.AsyncClient


@asynccontextmanager
async def serving(root: Path, **sections: Any) -> AsyncIterator[Server]:
    sections["jobs"] = {"path": root / "jobs.db", **sections.get("jobs", {})}
    async with (
        running(make_settings(root / "bundles", **sections)) as app,
        critiq.AsyncClient(f"127.0.0.1:{app.grpc_port}", retries=0) as grpc,
        critiq.AsyncClient(f"http://127.0.0.1:{app.rest_port}", retries=0) as rest,
    ):
        yield Server(app, grpc, rest)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    root = tmp_path_factory.mktemp("jobs")
    write_bundle(root / "bundles")
    (root / "bright.yaml").write_text(POLICY)
    jobs = {"portion": 4, "max_items": 40}
    async with serving(root, jobs=jobs, moderation={"policies": [root / "bright.yaml"]}) as started:
        yield started


module = pytest.mark.asyncio(loop_scope="module")


def client_of(server: Server, face: str) -> critiq.AsyncClient:
    return server.grpc if face == "grpc" else server.rest


@module
@pytest.mark.parametrize("face", ["grpc", "rest"])
async def test_results_are_those_of_a_batch(server: Server, face: str) -> None:
    client = client_of(server, face)
    items: list[Any] = [critiq.Item(flat(level), "a red cat", f"picture {level}") for level in range(20, 33)]
    items += [b"no picture", critiq.Item(flat(77), "", "without a prompt"), critiq.ImageUrl("https://a.example/")]
    job = await client.submit_job(items)
    assert (job.state, job.items) == ("queued", 16)
    ended = await client.wait_job(job.id, timeout=120)
    assert (ended.state, ended.answered, ended.failed, ended.error) == ("done", 16, 2, "")
    assert ended.created <= (ended.started or 0) <= (ended.finished or 0)
    found = await client.job_results(job.id)
    expected = await client.score_batch(items)
    assert [entry.id for entry in found] == [entry.id for entry in expected]
    for entry, other in zip(found, expected, strict=True):
        assert (entry.error is None) == (other.error is None)
        assert str(entry.error) == str(other.error)
        if entry.result is not None:
            assert [score.raw for score in entry.result] == [score.raw for score in other.unwrap()]
    assert await client.job(job.id) == ended
    assert ended in await client.jobs("done")


@module
async def test_raw_pixels_and_a_target(server: Server) -> None:
    import numpy as np

    pixels = np.full((20, 20, 3), 102, np.uint8)
    job = await server.grpc.submit_job([pixels], dimensions=["brightness"])
    await server.grpc.wait_job(job.id, timeout=120)
    (entry,) = await server.grpc.job_results(job.id)
    assert entry.result is not None
    assert [(score.dimension, round(score.raw, 4)) for score in entry.result] == [("brightness", 0.4)]
    assert raw(pixels).shape == [20, 20, 3]


@module
async def test_the_policy_decides(server: Server) -> None:
    job = await server.rest.submit_job([flat(10), flat(200), b"no picture"], policy="bright")
    assert (job.policy, job.policy_version) == ("bright", "1")
    ended = await server.rest.wait_job(job.id, timeout=120)
    assert (ended.decisions, ended.failed) == ({"reject": 1, "accept": 1}, 1)
    first, second, third = await server.grpc.job_results(job.id)
    assert first.verdict is not None
    assert second.verdict is not None
    assert (first.verdict.decision, first.verdict.reasons[0].rule) == ("reject", "dark")
    asked = await server.grpc.moderate(flat(200), policy="bright")
    assert (second.verdict.decision, second.verdict.image) == (asked.decision, asked.image)
    assert [score.raw for score in second.verdict.scores] == [score.raw for score in asked.scores]
    assert isinstance(third.error, critiq.InvalidArgument)
    with pytest.raises(critiq.NotFound, match="there is no policy 'dim'; there are bright"):
        await server.grpc.submit_job([flat()], policy="dim")


@module
async def test_pages(server: Server) -> None:
    job = await server.rest.submit_job([flat(level) for level in range(5)])
    await server.rest.wait_job(job.id, timeout=120)
    async with httpx.AsyncClient(base_url=server.rest.url, trust_env=False) as http:
        page = (await http.get(f"/v1/jobs/{job.id}/results?start=1&limit=3")).json()
        assert ([entry["id"] for entry in page["results"]], page["next"]) == (["1", "2", "3"], 4)
        newest = (await http.get("/v1/jobs?limit=1")).json()["jobs"]
        assert [entry["id"] for entry in newest] == [job.id]
        older = (await http.get(f"/v1/jobs?after={job.id}")).json()["jobs"]
        assert job.id not in [entry["id"] for entry in older]


@module
async def test_a_key_is_one_job(server: Server) -> None:
    jobs = await asyncio.gather(*(server.grpc.submit_job([flat(3)], key="once") for _ in range(5)))
    assert len({job.id for job in jobs}) == 1
    with pytest.raises(critiq.FailedPrecondition, match="choose another key"):
        await server.rest.submit_job([flat(4)], key="once")


@module
@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"items": []}, 400, "items"),
        ({"items": [{"image": {}}] * 41}, 413, "items"),
        ({"items": [{"image": {}, "id": "a"}] * 2}, 400, "items[1].id"),
        ({"items": [{"image": {}, "id": "a" * 1025}]}, 400, "items[0].id"),
        ({"items": [{"image": {"raw": {"base64": "", "shape": [10**30, 1, 3]}}}]}, 400, "items[0].image.raw.shape[0]"),
        ({"items": [{"image": {}}], "callback": {"url": ""}}, 400, "callback.url"),
        ({"items": [{"image": {}}], "callback": {"url": "https://hooks.example/"}}, 403, "callback.url"),
        ({"items": [{"image": {}}], "idempotency_key": "k" * 256}, 400, "idempotency_key"),
        ({"items": [{"image": {}}], "policy": "none"}, 404, "policy"),
        ({"items": [{"image": {"base64": ""}, "model": "tiny"}], "policy": "bright"}, 400, "items[0].target"),
        ({"items": [{"image": {}}], "extra": 1}, 400, "extra"),
    ],
)
async def test_refused(server: Server, body: Mapping[str, Any], status: int, field: str) -> None:
    async with httpx.AsyncClient(base_url=server.rest.url, trust_env=False) as http:
        answer = await http.post("/v1/jobs", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


@module
@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/v1/jobs/nothing", 404, "id"),
        ("/v1/jobs/nothing/results", 404, "id"),
        ("/v1/jobs?state=lost", 400, "state"),
        ("/v1/jobs?limit=0", 400, "limit"),
        ("/v1/jobs?limit=1001", 400, "limit"),
        ("/v1/jobs?limit=x", 400, "limit"),
        ("/v1/jobs?after=nothing", 404, "id"),
        ("/v1/jobs?page=2", 400, "URL query"),
    ],
)
async def test_questions_that_make_no_sense(server: Server, path: str, status: int, field: str) -> None:
    async with httpx.AsyncClient(base_url=server.rest.url, trust_env=False) as http:
        answer = await http.get(path)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


@module
async def test_other_bodies(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.rest.url, trust_env=False) as http:
        form = await http.post("/v1/jobs", files={"image": flat()})
        assert (form.status_code, form.json()["error"]["field"]) == (400, "Content-Type")
        taken = await http.post("/v1/jobs", json={"items": [{"image": {}}]})
        assert (taken.status_code, taken.headers["location"]) == (202, f"/v1/jobs/{taken.json()['id']}")


@module
async def test_metrics(server: Server) -> None:
    job = await server.grpc.submit_job([flat(99)])
    await server.grpc.wait_job(job.id, timeout=120)
    done = len(await server.grpc.jobs("done", limit=1000))
    sample = server.app.metrics.registry.get_sample_value
    await until(lambda: sample("critiq_jobs", {"state": "done"}) == done)
    assert sample("critiq_jobs_waiting_bytes") == 0
    assert sample("critiq_jobs_oldest_queued_seconds") == 0


@pytest.fixture
def slow(tmp_path: Path) -> Path:
    """A directory with a bundle that takes 0.1 s a batch of at most four."""
    write_simulated(tmp_path / "bundles", batch_ms=100, max_batch=4)
    return tmp_path


async def test_cancelled(slow: Path) -> None:
    async with serving(slow, models={"default": "simulated", "load": ["simulated"]}, jobs={"at_once": 1}) as server:
        running_, waiting = [await server.grpc.submit_job([flat(at) for at in range(200)]) for _ in range(2)]
        await until_answered(server.grpc, running_.id, 1)
        for job in (waiting, running_):
            cancelled = await server.rest.cancel_job(job.id)
            assert cancelled.state == "cancelled"
        assert 0 < cancelled.answered < 200
        assert len(await server.grpc.job_results(running_.id)) == cancelled.answered
        assert await server.grpc.cancel_job(running_.id) == cancelled
        last = await server.grpc.submit_job([flat(99)])  # the worker goes on
        assert (await server.grpc.wait_job(last.id, timeout=120)).state == "done"
        assert await server.grpc.job(running_.id) == cancelled


async def test_taken_up_after_a_restart(slow: Path) -> None:
    models = {"default": "simulated", "load": ["simulated"]}
    async with serving(slow, models=models) as server:
        job = await server.grpc.submit_job([flat(at) for at in range(48)])
        queued = await server.grpc.submit_job([flat(at) for at in range(48)])
        await until_answered(server.grpc, job.id, 1)
    async with serving(slow, models=models) as server:
        for name in (job.id, queued.id):
            ended = await server.grpc.wait_job(name, timeout=120)
            assert (ended.state, ended.answered, ended.failed) == ("done", 48, 0)
            found = await server.grpc.job_results(name)
            assert [round(entry.result["red"].raw) for entry in found if entry.result] == list(range(48))


async def test_a_policy_that_is_gone_fails_the_job(slow: Path) -> None:
    models = {"default": "simulated", "load": ["simulated"]}
    (slow / "p.yaml").write_text(POLICY.replace("brightness, below: 0.5", "red, scale: raw, below: 9"))
    async with serving(slow, models=models, moderation={"policies": [slow / "p.yaml"]}) as server:
        job = await server.grpc.submit_job([flat(at) for at in range(64)], policy="bright")
    async with serving(slow, models=models) as server:
        ended = await server.grpc.wait_job(job.id, timeout=120)
        assert ended.state == "failed"
        assert "has no policies" in ended.error


async def test_those_who_wait_go_first(slow: Path) -> None:
    """A job of many pictures keeps an interactive call waiting for a few batches, and never has all of the room."""
    models = {"default": "simulated", "load": ["simulated"]}
    async with serving(slow, models=models, limits={"in_flight": 8, "batch_items": 8}) as server:
        job = await server.grpc.submit_job([flat(at) for at in range(200)])
        await until_answered(server.grpc, job.id, 1)
        for level in range(200, 205):
            await server.grpc.score(flat(level), timeout=10.0)
        now = await server.grpc.job(job.id)
        assert now.state == "running"
        assert now.answered < 150
        await server.grpc.cancel_job(job.id)


async def test_no_room(slow: Path) -> None:
    models = {"default": "simulated", "load": ["simulated"]}
    async with serving(slow, models=models, jobs={"max_jobs": 1, "max_bytes": 100_000}) as server:
        await server.grpc.submit_job([flat(at) for at in range(200)])
        with pytest.raises(critiq.TooBusy, match="1 jobs wait") as caught:
            await server.grpc.submit_job([flat()])
        assert caught.value.retry_after == 5.0
        async with httpx.AsyncClient(base_url=server.rest.url, trust_env=False) as http:
            answer = await http.post("/v1/jobs", json={"items": [{"image": {}}]})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "5")
        with pytest.raises(critiq.TooLarge, match="the limit is 100,000"):
            await server.grpc.submit_job([bytes(100_000)])


async def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundles")
    write_bundle(tmp_path / "bundles", name="other")
    async with serving(tmp_path, models={"allow_changes": True}) as server:
        job = await server.grpc.submit_job([flat(1)], model="other")  # known, and not loaded
        lost = await server.grpc.submit_job([flat(2)], model="other", version="1")
        await asyncio.sleep(0.3)
        assert (await server.grpc.job(job.id)).answered == 0
        await server.grpc.load_model("other")
        for name in (job.id, lost.id):
            assert (await server.grpc.wait_job(name, timeout=120)).failed == 0


async def test_jobs_are_forgotten(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundles")
    async with serving(tmp_path, jobs={"keep_seconds": 0.5}) as server:
        job = await server.grpc.submit_job([flat(1)])
        await server.grpc.wait_job(job.id, timeout=120)
        await until_gone(server.grpc, job.id)


async def test_off_by_default(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with running(make_settings(tmp_path)) as app:
        for url in (f"127.0.0.1:{app.grpc_port}", f"http://127.0.0.1:{app.rest_port}"):
            async with critiq.AsyncClient(url) as client:
                for call in (client.submit_job([flat()]), client.jobs(), client.job("a"), client.cancel_job("a")):
                    with pytest.raises(critiq.PermissionDenied, match=r"jobs\.path"):
                        await call


async def test_a_path_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with pytest.raises(StartError, match=r"jobs\.path must name a file"):
        await App(make_settings(tmp_path, jobs={"path": tmp_path / "no" / "jobs.db"})).start()


async def until_answered(client: critiq.AsyncClient, name: str, count: int) -> None:
    for _ in range(1000):
        if (await client.job(name)).answered >= count:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"{name} has fewer than {count} answers")


async def until_gone(client: critiq.AsyncClient, name: str) -> None:
    for _ in range(200):
        try:
            await client.job(name)
        except critiq.NotFound as error:
            assert "jobs are kept for 0.5 s" in str(error)  # noqa: PT017
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"{name} is still there")


async def test_a_full_disk_is_said_so_and_got_over(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundles")
    async with serving(tmp_path) as server:
        first = await server.grpc.submit_job([flat(1)])
        await server.grpc.wait_job(first.id, timeout=120)
        await limit_pages(server.app, 20)
        with pytest.raises(critiq.Unavailable, match="cannot be used now"):
            await server.grpc.submit_job([flat(2) + bytes(200_000)])
        assert (await server.grpc.job(first.id)).state == "done"
        await limit_pages(server.app, 2**30)
        job = await server.grpc.submit_job([flat(2)])
        assert (await server.grpc.wait_job(job.id, timeout=120)).failed == 0


async def limit_pages(app: App, count: int) -> None:
    """Lets the database grow to so many pages: SQLite says of more what it says of a full disk."""
    jobs: Any = app.jobs
    await jobs._thread(jobs._store.connection.execute, f"PRAGMA max_page_count = {count}")
