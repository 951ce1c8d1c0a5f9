"""The page's files and the counters behind its live view, over plain HTTP."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from critiq_server.api import page
from tests.fixtures.images import encoded, photo
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXTS = {path: path.read_text() for path in (Path(page.__file__).parents[1] / "page" / "static").iterdir()}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def http(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[httpx.AsyncClient]:
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    async with (
        running(make_settings(root)) as app,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}", trust_env=False) as client,
    ):
        yield client


async def test_the_page_may_load_nothing_from_elsewhere(http: httpx.AsyncClient) -> None:
    response = await http.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"


async def test_nothing_stands_in_the_document_that_the_policy_would_forbid(http: httpx.AsyncClient) -> None:
    html = (await http.get("/")).text
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|https?://(?!www\.w3\.org)", html)
    named = re.findall(r'(?:src|href)="(page/[^"]+)"', html)
    assert len(named) >= 4
    for name in named:
        assert (await http.get(f"/{name}")).status_code == 200, name


@pytest.mark.parametrize("path", sorted(TEXTS), ids=lambda path: path.name)
async def test_every_file_is_served_and_needs_no_network(http: httpx.AsyncClient, path: Path) -> None:
    text = TEXTS[path]
    assert len(text.splitlines()) < 400
    assert not re.search(r"https?://(?!www\.w3\.org/)", text), "an address elsewhere"
    assert not re.search(r"\b(innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval)\b", text)
    response = await http.get("/" if path.name == page.INDEX else f"/page/{path.name}")
    assert response.text == text
    assert response.headers["content-type"] == page.MEDIA_TYPES[path.suffix]


async def test_an_unchanged_file_is_not_sent_again(http: httpx.AsyncClient) -> None:
    first = await http.get("/page/app.js")
    tag = first.headers["etag"]
    again = await http.get("/page/app.js", headers={"if-none-match": f'"other", W/{tag}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["cache-control"] == "no-cache"
    assert (await http.get("/page/app.js", headers={"if-none-match": '"other"'})).status_code == 200
    head = await http.head("/page/app.js")
    assert (head.headers["etag"], head.content) == (tag, b"")


@pytest.mark.parametrize("path", ["/page/nothing.js", "/page/index.html", "/page/..%2fsettings.py", "/page/"])
async def test_other_files_are_not_there(http: httpx.AsyncClient, path: str) -> None:
    response = await http.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "NOT_FOUND"


async def test_live_counts_what_happened(http: httpx.AsyncClient) -> None:
    before = (await http.get("/v1/live")).json()
    files = [("image", encoded(photo(seed=seed))) for seed in (1, 2, 3)] + [("image", b"no picture")]
    answer = await http.post("/v1/score/batch", files=files, data={"prompt": "a red cat"})
    values = [score["raw"] for entry in answer.json()["results"][:3] for score in entry["result"]["scores"]]
    assert len(values) == 6
    after = (await http.get("/v1/live")).json()
    assert after["time"] >= before["time"]
    assert after["under_way"]["pictures"] == 0
    assert after["under_way"]["pictures_limit"] == 256
    calls = {(entry["operation"], entry["code"]): entry["count"] for entry in after["calls"]}
    assert calls[("score_batch", "OK")] == 1
    pictures = {entry["code"]: entry["count"] for entry in after["pictures"] if entry["model"] == "tiny"}
    assert pictures["OK"] == 3
    (latency,) = [entry["seconds"] for entry in after["latency"] if entry["operation"] == "score_batch"]
    assert sum(latency["counts"]) == 1
    assert len(latency["counts"]) == len(latency["bounds"]) + 1
    assert latency["sum"] > 0
    stages = {entry["stage"]: entry for entry in after["stages"]}
    encoder = stages["image_encoder"]["batch_size"]
    assert encoder["sum"] == 3
    assert sum(encoder["counts"]) == sum(stages["image_encoder"]["compute_seconds"]["counts"])
    assert after["store"]["misses"] >= 3


async def test_live_counts_scores_by_dimension(http: httpx.AsyncClient) -> None:
    response = await http.post("/v1/score", files={"image": encoded(photo(seed=9))})
    (score,) = response.json()["scores"]
    found = {entry["dimension"]: entry["values"] for entry in (await http.get("/v1/live")).json()["scores"]}
    values = found[score["dimension"]]
    bucket = next(at for at, bound in enumerate(values["bounds"]) if score["calibrated"] <= bound)
    assert values["counts"][bucket] >= 1


async def test_the_page_can_be_switched_off(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with (
        running(make_settings(tmp_path, page={"enabled": False})) as app,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{app.rest_port}", trust_env=False) as client,
    ):
        for path in ("/", "/page/app.js", "/v1/live"):
            assert (await client.get(path)).status_code == 404, path
        assert (await client.get("/healthz")).status_code == 200
