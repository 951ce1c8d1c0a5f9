"""Pictures by URL through every face: off unless hosts are named, then like any other picture."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

import critiq
from critiq.v1 import scoring_pb2
from critiq_server.app import App
from tests.server.api.conftest import Server
from tests.support.bundles import write_bundle
from tests.support.https import Asked, Website, answer, make_certificate, website
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")

HOST = "localhost"  # a name that every machine resolves


@dataclass
class Fetching:
    app: App
    site: Website

    def url(self, path: str) -> str:
        return f"https://{HOST}:{self.site.port}{path}"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fetching(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fetching]:
    """A server that may fetch from a website that has ``/51.png``, grey at that level, and whose ``/slow`` hangs."""

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        if asked.target == "/slow":
            await asyncio.sleep(60)
        level = asked.target.removeprefix("/").removesuffix(".png")
        writer.write(answer(200, flat(int(level))) if level.isdecimal() else answer(404))
        await writer.drain()

    root: Path = tmp_path_factory.mktemp("urls")
    certificate = make_certificate(root / "tls", HOST)
    write_bundle(root / "bundles")
    async with website(reply, certificate) as site:
        urls = {
            "hosts": [HOST],
            "ports": [site.port],
            "ca_file": certificate[1],
            "allow_private_addresses": True,
            "timeout_seconds": 5,
        }
        async with running(make_settings(root / "bundles", urls=urls)) as app:
            yield Fetching(app, site)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_scored_like_the_file(fetching: Fetching, scheme: str) -> None:
    port = fetching.app.grpc_port if scheme == "grpc" else fetching.app.rest_port
    async with critiq.AsyncClient(f"{scheme}://127.0.0.1:{port}") as client:
        await client.score(flat(51))  # from now on the answer is in the store
        assert await client.score(flat(51)) == await client.score(critiq.ImageUrl(fetching.url("/51.png")))
        ranking = (await client.rank([critiq.ImageUrl(fetching.url("/10.png")), flat(51)])).ranking
        assert [entry.index for entry in ranking] == [1, 0]
        results = await client.score_batch(
            [critiq.ImageUrl(fetching.url("/52.png")), flat(53), critiq.ImageUrl(fetching.url("/none"))]
        )
        assert [round(255 * result.unwrap()["brightness"].raw) for result in results[:2]] == [52, 53]
        assert isinstance(results[2].error, critiq.InvalidArgument)
        assert "answers 404" in str(results[2].error)


@pytest.mark.asyncio(loop_scope="module")
async def test_json_and_forms(fetching: Fetching) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{fetching.app.rest_port}", trust_env=False) as http:
        url = fetching.url("/51.png")
        answers = [
            await http.post("/v1/score", json={"image": {"url": url}}),
            # A part without a file name is a text.
            await http.post("/v1/score", files={"url": (None, url)}),
        ]
        assert [entry.status_code for entry in answers] == [200, 200]
        assert {round(255 * entry.json()["scores"][0]["raw"]) for entry in answers} == {51}
        batch = await http.post("/v1/score/batch", files=[("url", (None, url)), ("image", ("a", flat(7)))])
        assert [round(255 * entry["result"]["scores"][0]["raw"]) for entry in batch.json()["results"]] == [51, 7]
        compared = await http.post("/v1/compare", files=[("first_url", (None, url)), ("second", ("a", flat(7)))])
        assert compared.json()["comparisons"][0]["preference"] == "first"
        both = await http.post("/v1/score", json={"image": {"url": url, "base64": "AAAA"}})
        assert (both.status_code, both.json()["error"]["field"]) == (400, "image")
        swapped = await http.post("/v1/score", files={"url": ("a", flat())})
        assert (swapped.status_code, swapped.json()["error"]["message"]) == (400, "the form's 'url' must be a text")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_calls_deadline_holds_for_the_download(fetching: Fetching) -> None:
    async with critiq.AsyncClient(f"127.0.0.1:{fetching.app.grpc_port}", retries=0) as client:
        with pytest.raises(critiq.DeadlineExceeded):
            await client.score(critiq.ImageUrl(fetching.url("/slow")), timeout=0.3)


@pytest.mark.asyncio(loop_scope="module")
async def test_prefetched(fetching: Fetching) -> None:
    async with critiq.AsyncClient(f"127.0.0.1:{fetching.app.grpc_port}") as client:
        result = await client.prefetch([critiq.ImageUrl(fetching.url("/99.png")), critiq.ImageUrl("https://else/a")])
        assert result.accepted == 1
        assert isinstance(result.refused[0].error, critiq.PermissionDenied)
        await until(lambda: "/99.png" in [asked.target for asked in fetching.site.asked])


@pytest.mark.asyncio(loop_scope="module")
async def test_off_by_default(server: Server) -> None:
    image = scoring_pb2.Image(url="https://pictures.example/a.png")
    refusal = await server.ports.grpc(
        "/critiq.v1.Scoring/Score", scoring_pb2.ScoreRequest(image=image).SerializeToString()
    )
    assert not isinstance(refusal, bytes)
    assert (refusal.status, refusal.code, refusal.field) == ("PERMISSION_DENIED", "PERMISSION_DENIED", "image.url")
    assert "urls.hosts" in refusal.message
    answered = await server.ports.http.post("/v1/score", json={"image": {"url": "https://pictures.example/a.png"}})
    assert (answered.status_code, answered.json()["error"]["code"]) == (403, "PERMISSION_DENIED")
