"""What a server's log says of a whole run: enough to follow a request, and nothing that callers sent."""

from __future__ import annotations

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import httpx

import critiq
from critiq_server.security.keys import append, new_key
from tests.support.bundles import write_bundle
from tests.support.collector import Collector, collecting
from tests.support.https import Asked, answer, website
from tests.support.receiver import receiving
from tests.support.requests import flat
from tests.support.servers import ServerProcess, server_process

MARK = "marked-7Qx"
"""In everything that must not be logged."""
PROMPTS = (
    f"a cat {MARK}",
    f"{MARK}\n{{'event': 'forged'}}\r\nlevel=error",
    f"\x1b[31m{MARK}\x1b[0m\u202e",
    f"{MARK} " * 2000,  # longer than the limit
    f"%s %d {{}} ${{jndi:ldap://{MARK}}}",
)


async def test_a_whole_run_leaves_neither_prompts_nor_keys_nor_urls(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundles")
    text, key = new_key("a-caller", ["score", "models", "metrics"])
    append(tmp_path / "keys.yaml", key)
    log = tmp_path / "log"

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(200, flat(9)) if asked.target.startswith("/fine") else answer(404))
        await writer.drain()

    with collecting() as collector:
        async with website(reply) as site, receiving() as receiver:
            hosts = {"hosts": ["localhost"], "ports": [site.port], "allow_http": True, "allow_private_addresses": True}
            sections = {
                "models": {"directories": [str(tmp_path / "bundles")], "default": "tiny", "load": ["tiny"]},
                "security": {"keys_file": str(tmp_path / "keys.yaml")},
                "log": {"level": "debug", "access": True},
                "telemetry": {"traces": {"endpoint": f"http://127.0.0.1:{collector.port}"}},
                "urls": hosts,
                "jobs": {"path": str(tmp_path / "jobs.db"), "callbacks": receiver.settings()},
            }
            (tmp_path / "config.yaml").write_text(json.dumps(sections))
            with server_process(["--config", str(tmp_path / "config.yaml")], log) as server:
                await everything(server, text, f"http://localhost:{site.port}", receiver.url + MARK)
                await receiver.told()
                await asyncio.to_thread(server.terminate)
    secret = text.rpartition("_")[2]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    told = [line for line in lines if any(hidden in json.dumps(line) for hidden in (MARK, secret, "/fine", "/hook"))]
    assert told == []
    traces_and_requests_are_named(lines, collector)
    assert MARK not in str(collector.spans)


async def everything(server: ServerProcess, key: str, site: str, callback: str) -> None:
    """Calls of all sorts, with what must not be logged in each place where a caller can put it."""
    wrong = f"critiq_{'0' * 16}_{'f' * 64}"
    async with critiq.AsyncClient(server.grpc, api_key=key, headers={"x-request-id": "mine-1"}) as grpc:
        for prompt in PROMPTS:
            results = await grpc.score_batch([(flat(3), prompt), (MARK.encode(), prompt)])
            assert results[1].error is not None
        url = critiq.ImageUrl(f"{site}/fine?token={MARK}")
        assert (await grpc.score(url, PROMPTS[0])).image.width > 0
        for failing in (
            grpc.score(critiq.ImageUrl(f"{site}/{MARK}"), PROMPTS[0]),
            grpc.score(critiq.ImageUrl(f"http://{MARK}.example/"), PROMPTS[0]),
            grpc.score(flat(3), PROMPTS[0], model="nobody"),
            grpc.load_model("tiny"),
        ):
            try:
                await failing
            except critiq.CritiqError:
                continue
            raise AssertionError("this should have failed")
        await grpc.submit_job([critiq.Item(flat(4), PROMPTS[0])], callback=callback)
    headers = {"x-api-key": key}
    async with httpx.AsyncClient(base_url=server.rest) as http:
        encoded = base64.b64encode(flat(3)).decode()
        body: dict[str, Any] = {"image": {"base64": encoded}, "prompt": PROMPTS[1]}
        assert (await http.post("/v1/score", json=body, headers=headers)).status_code == 200
        query = {"prompt": PROMPTS[0]}
        await http.post("/v1/score", content=flat(5), params=query, headers={**headers, "content-type": "image/png"})
        await http.post("/v1/score", json=[MARK], headers=headers)
        await http.post("/v1/score", json=body, headers={"x-api-key": wrong})
        await http.post("/v1/score", json=body, headers={"x-api-key": MARK})
        forged = await http.get("/v1/models", headers={**headers, "x-request-id": f'"}}{MARK}'})
        assert MARK not in forged.headers["x-request-id"]


def traces_and_requests_are_named(lines: list[dict[str, Any]], collector: Collector) -> None:
    requests = [line for line in lines if line["event"] == "request"]
    assert {line["operation"] for line in requests} >= {"score", "score_batch"}
    calls = [span for span in collector.spans if span.kind == 2]
    known = {span.trace for span in calls}
    for line in requests:
        if line["key"]:
            assert line["key"] == "a-caller"
            assert line["trace_id"] in known
            assert line["request_id"]
            assert line["ms"] > 0
    assert {line["bytes"] for line in requests} >= {len(flat(3))}
    assert len([line for line in requests if line.get("request_id") == "mine-1"]) >= len(PROMPTS)
    audits = [line for line in lines if line["event"] == "audit"]
    assert [line["outcome"] for line in audits] == ["PERMISSION_DENIED"]
    assert audits[0]["trace_id"] in known
