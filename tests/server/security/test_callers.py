"""What a key lets its holder do, over every face: its limits, its jobs, its traces in the log."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

import critiq
import critiq.v1
from critiq.v1 import scoring_pb2
from critiq_server.app import App
from critiq_server.listening import StartError
from critiq_server.security.keys import append, new_key
from tests.server.security.conftest import Server, ask
from tests.support.bundles import write_bundle, write_simulated
from tests.support.certificates import Authority
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

module = pytest.mark.asyncio(loop_scope="module")


@module
@pytest.mark.parametrize("face", ["grpc", "http"])
async def test_the_client_carries_its_key(server: Server, face: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"127.0.0.1:{server.app.grpc_port}" if face == "grpc" else f"http://127.0.0.1:{server.app.rest_port}"
    key = server.keys["score"]
    async with critiq.AsyncClient(url) as client:
        for call in (client.score(flat()), anext(aiter(client.score_stream([flat()])))):
            with pytest.raises(critiq.Unauthenticated, match="needs an API key"):
                await call
    async with critiq.AsyncClient(url, api_key=key) as client:
        assert (await client.score(flat())).scores
        assert [item.error async for item in client.score_stream([flat(), flat(9)])] == [None, None]
        assert key not in repr(client)
        assert key not in repr(vars(client))
        with pytest.raises(critiq.PermissionDenied, match="scope models"):
            await client.load_model("tiny")
    async with critiq.AsyncClient(url, api_key=key, headers={"Authorization": "Basic eDp5"}) as client:
        assert (await client.score(flat())).scores
    monkeypatch.setenv("CRITIQ_API_KEY", key)
    async with critiq.AsyncClient(url) as client:
        assert (await client.score(flat())).scores
    async with critiq.AsyncClient(url, api_key="") as client:
        with pytest.raises(critiq.Unauthenticated):
            await client.score(flat())


@module
async def test_the_command_line_carries_its_key(server: Server) -> None:
    async def run(*before: str, **environment: str) -> tuple[int | None, str]:
        command = [sys.executable, "-m", "critiq.cli", *before, "models", f"--url=127.0.0.1:{server.app.grpc_port}"]
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, **environment},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        return process.returncode, said.decode()

    key = server.keys["score"]
    (refused, why), *answered = await asyncio.gather(run(), run("--api-key", key), run(CRITIQ_API_KEY=key))
    assert refused == 2
    assert "needs an API key" in why
    for status, said in answered:
        assert status == 0, said
        assert "tiny" in said
        assert key not in said


def test_a_key_that_no_header_can_carry_is_not_shown() -> None:
    with pytest.raises(critiq.InvalidArgument, match=r"^api_key: ") as caught:
        critiq.Client(api_key="critiq_1_secret\n")
    assert "secret" not in str(caught.value)


@module
@pytest.mark.parametrize("face", ["grpc", "http"])
async def test_a_key_has_its_limits(server: Server, face: str) -> None:
    key = server.new_key("score", requests_per_day=3)
    await until(lambda: server.guard._keys.find(key) is not None)
    url = f"127.0.0.1:{server.app.grpc_port}" if face == "grpc" else f"http://127.0.0.1:{server.app.rest_port}"
    async with critiq.AsyncClient(url, api_key=key, retries=0) as client:
        for _ in range(3):
            await client.score(flat())
        with pytest.raises(critiq.TooBusy, match="3 requests of this day") as caught:
            await client.score(flat())
    assert 0 < (caught.value.retry_after or 0) <= 86_400
    if face == "http":
        answered = await ask(server, "/v1/models", "GET", key)
        assert answered.status_code == 429
        assert 0 < int(answered.headers["retry-after"]) <= 86_400


@module
async def test_items_of_a_stream_count_as_calls(server: Server) -> None:
    few, slow = server.new_key("score", requests_per_day=3), server.new_key("score", requests_per_second=20)
    await until(lambda: server.guard._keys.find(slow) is not None)
    url = f"127.0.0.1:{server.app.grpc_port}"
    async with critiq.AsyncClient(url, api_key=few, retries=0) as client:
        with pytest.raises(critiq.TooBusy, match="of this day"):
            _ = [item async for item in client.score_stream([flat(level) for level in range(5)])]
    async with critiq.AsyncClient(url, api_key=slow, retries=0) as client:
        started = asyncio.get_running_loop().time()
        found = [item async for item in client.score_stream([flat(level) for level in range(26)])]
        assert len(found) == 26
        assert asyncio.get_running_loop().time() - started >= 0.25  # 20 at once, 6 at 20 a second


@module
async def test_a_withdrawn_key_opens_nothing(server: Server) -> None:
    before = server.file.read_text()
    key = server.new_key("score")
    await until(lambda: server.guard._keys.find(key) is not None)
    assert (await ask(server, "/v1/models", "GET", key)).status_code == 200
    server.file.write_text(before)
    await until(lambda: server.guard._keys.find(key) is None)
    assert (await ask(server, "/v1/models", "GET", key)).status_code == 401


@module
async def test_what_administrators_do_is_in_the_audit_log(server: Server) -> None:
    metadata = (("authorization", f"bearer {server.keys['models']}"),)
    with capture_logs() as logs:
        assert (await ask(server, "/v1/models/nothing/load", "POST", server.keys["models"])).status_code == 404
        load = server.grpc.unary_unary("/critiq.v1.Models/Load")
        await load(b"\n\x04tiny", metadata=metadata)
        await ask(server, "/v1/models/nothing/load", "POST", server.keys["score"])
    audit = [
        {name: entry[name] for name in ("call", "key", "model", "outcome")}
        for entry in logs
        if entry["event"] == "audit"
    ]
    assert audit == [
        {"call": "load", "key": "models-only", "model": "nothing", "outcome": "NOT_FOUND"},
        {"call": "load", "key": "models-only", "model": "tiny", "outcome": "OK"},
    ]
    assert not any(key in str(logs) for key in server.keys.values())


@module
@pytest.mark.parametrize("face", ["grpc", "http"])
async def test_a_job_is_seen_by_its_own_callers_only(server: Server, face: str) -> None:
    stranger, own = server.new_key("score"), server.keys["score"]
    await until(lambda: server.guard._keys.find(stranger) is not None)
    url = f"127.0.0.1:{server.app.grpc_port}" if face == "grpc" else f"http://127.0.0.1:{server.app.rest_port}"
    async with critiq.AsyncClient(url, api_key=own) as client, critiq.AsyncClient(url, api_key=stranger) as other:
        job = await client.submit_job([flat()], key=face)
        assert (await client.submit_job([flat()], key=face)).id == job.id
        assert (await other.submit_job([flat(7)], key=face)).id != job.id  # keys of two callers are two keys
        for call in (other.job(job.id), other.job_results(job.id), other.cancel_job(job.id)):
            with pytest.raises(critiq.NotFound, match="there is no job"):
                await call
        assert job.id not in [found.id for found in await other.jobs()]
        assert job.id in [found.id for found in await client.jobs()]
        assert (await client.wait_job(job.id, timeout=120)).state == "done"


@module
async def test_refusals_do_not_flood_the_log(server: Server) -> None:
    server.guard._logged_at = float("-inf")
    with capture_logs() as logs:
        for _ in range(20):
            await ask(server, "/v1/score", "POST", "nonsense")
    refused = [entry for entry in logs if entry["event"] == "refused"]
    assert len(refused) == 1
    assert refused[0]["call"] == "POST /v1/score"
    assert "nonsense" not in str(logs)


@module
async def test_large_bodies_without_a_key_get_the_same_answer(server: Server) -> None:
    answered = await server.http.post("/v1/score", content=bytes(20 * 2**20), headers={"Content-Type": "image/png"})
    assert answered.status_code == 401
    score = server.grpc.unary_unary("/critiq.v1.Scoring/Score", scoring_pb2.ScoreRequest.SerializeToString)
    request = scoring_pb2.ScoreRequest(image=scoring_pb2.Image(encoded=bytes(20 * 2**20)))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await score(request)
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert ("www-authenticate", 'Bearer realm="critiq"') in list(caught.value.initial_metadata() or ())


async def test_a_server_without_its_file_does_not_start(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    app = App(make_settings(tmp_path, security={"keys_file": tmp_path / "none.yaml"}))
    with pytest.raises(StartError, match="critiq keys new"):
        await app.start()


@pytest.mark.parametrize(
    ("has", "warning"),
    [
        ((), "without authentication"),
        (("keys",), "without TLS"),
        (("tls",), "without authentication"),
        (("keys", "tls"), None),
        (("tls", "client certificates"), None),
    ],
)
async def test_listening_further_warns_of_what_is_missing(
    tmp_path: Path, has: tuple[str, ...], warning: str | None
) -> None:
    write_bundle(tmp_path)
    security: dict[str, Any] = {}
    if "keys" in has:
        append(tmp_path / "keys.yaml", new_key("a", ["score"])[1])
        security["keys_file"] = tmp_path / "keys.yaml"
    if "tls" in has:
        files = Authority(tmp_path / "tls").server()
        security["tls"] = {"certificate": files.certificate, "key": files.key}
        if "client certificates" in has:
            security["tls"] |= {"client_ca": files.ca, "require_client_certificate": True}
    with capture_logs() as logs:
        async with running(make_settings(tmp_path, server={"host": "0.0.0.0"}, security=security)):
            pass
    said = [entry["event"] for entry in logs if entry["event"].startswith("listening beyond")]
    assert len(said) == (warning is not None)
    assert not said or str(warning) in said[0]


async def test_calls_under_way_are_limited_and_make_room_when_they_end(tmp_path: Path) -> None:
    write_simulated(tmp_path / "bundles", batch_ms=400)
    text, key = new_key("one-at-a-time", ["score"], concurrency=1)
    append(tmp_path / "keys.yaml", key)
    security = {"keys_file": tmp_path / "keys.yaml"}
    async with running(make_settings(tmp_path / "bundles", default="simulated", security=security)) as app:
        for level, url in ((1, f"127.0.0.1:{app.grpc_port}"), (11, f"http://127.0.0.1:{app.rest_port}")):
            async with critiq.AsyncClient(url, api_key=text, retries=0) as client:
                calls = [client.score(flat(level + more)) for more in range(2)]
                found = await asyncio.gather(*calls, return_exceptions=True)
                assert [isinstance(outcome, critiq.ScoreResult) for outcome in found].count(True) == 1, found
                refused = next(outcome for outcome in found if isinstance(outcome, critiq.TooBusy))
                assert "1 calls under way" in str(refused)
                with pytest.raises(critiq.DeadlineExceeded):
                    await client.score(flat(level + 2), timeout=0.1)
            async with critiq.AsyncClient(url, api_key=text, retries=30) as client:
                # Tries again until the server has noticed that the caller from before is gone.
                assert (await client.score(flat(level + 3))).scores
