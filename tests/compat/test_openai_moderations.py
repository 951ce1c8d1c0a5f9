"""``POST /v1/moderations`` as the ``openai`` package calls it."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import pytest_asyncio
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from critiq_server.app import App
from critiq_server.listening import StartError
from critiq_server.settings import Settings, load_settings
from tests.support.bundles import write_bundle
from tests.support.gates import Gate
from tests.support.https import Asked, answer, make_certificate, website
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

POLICY = """
name: gate
version: 1
rules:
  - {name: dark, when: {dimension: brightness, below: 0.3}, decision: reject, reason: too_dark}
  - {name: dim, when: {dimension: brightness, below: 0.5}, decision: review}
  - {name: wordy, when: {dimension: wordiness, scale: raw, above: 3.5}, decision: reject}
"""
OTHER = (
    "{name: other, version: 2, rules: [{name: bright, when: {dimension: brightness, above: 0.9}, decision: reject}]}"
)


def settings(root: Path, *, urls: dict[str, Any] | None = None, **face: Any) -> Settings:
    write_bundle(root)
    for name, text in (("gate", POLICY), ("other", OTHER)):
        (root / f"{name}.yaml").write_text(text)
    moderation = {
        "policies": [root / "gate.yaml", root / "other.yaml"],
        "default": "gate",
        "openai": {"enabled": True, **face},
    }
    limits = {"in_flight": 1, "batch_items": 1, "stream_window": 1}
    return make_settings(root, moderation=moderation, limits=limits, urls=urls or {})


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    async with running(settings(tmp_path_factory.mktemp("bundles"))) as app:
        yield app


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client(app: App) -> AsyncIterator[openai.AsyncOpenAI]:
    async with connect(app) as client:
        yield client


def connect(app: App, **options: Any) -> openai.AsyncOpenAI:
    base = f"http://127.0.0.1:{app.rest_port}/v1"
    return openai.AsyncOpenAI(api_key="unused", base_url=base, max_retries=0, timeout=120, **options)


def picture(level: int, kind: str = "PNG") -> Any:
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(flat(level, kind=kind)).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def text(prompt: str) -> Any:
    return {"type": "text", "text": prompt}


async def test_a_dark_picture_is_flagged(client: openai.AsyncOpenAI) -> None:
    answer = await client.moderations.create(model="omni-moderation-latest", input=[text("a cat"), picture(51)])
    assert answer.id.startswith("modr-")
    assert answer.model == "gate:1"
    (result,) = answer.results
    told = result.to_dict()
    assert result.flagged is True
    assert told["categories"] == {"low_brightness": True, "low_wordiness": False}
    # Raw 0.2 of 0..1, and 0.2 times four tokens of 0..16.
    assert told["category_scores"] == {"low_brightness": pytest.approx(0.8), "low_wordiness": pytest.approx(0.95)}
    assert told["category_applied_input_types"] == {"low_brightness": ["image"], "low_wordiness": ["image", "text"]}
    verdict: Any = told["verdict"]
    assert (verdict["decision"], verdict["reasons"][0]["code"]) == ("reject", "too_dark")
    # What the type promises of OpenAI's own categories is not claimed.
    assert result.categories.violence is None


async def test_a_picture_to_review_is_not_flagged_but_says_so(client: openai.AsyncOpenAI) -> None:
    (result,) = (await client.moderations.create(input=[text("a cat"), picture(110, "JPEG")])).results
    assert result.flagged is False
    assert result.to_dict()["categories"] == {"low_brightness": False, "low_wordiness": False}
    assert result.to_dict()["verdict"]["decision"] == "review"  # type: ignore[index]


async def test_the_model_names_the_policy(client: openai.AsyncOpenAI) -> None:
    for name in ("other", "other:2"):
        answer = await client.moderations.create(model=name, input=[picture(255)])
        assert (answer.model, answer.results[0].flagged) == ("other:2", True)
        assert answer.results[0].to_dict()["categories"] == {"low_brightness": True}


async def test_without_a_prompt_a_category_that_needs_one_is_left_out(client: openai.AsyncOpenAI) -> None:
    (result,) = (await client.moderations.create(input=[picture(255)])).results
    told = result.to_dict()
    assert told["categories"] == {"low_brightness": False}
    assert told["verdict"]["decision"] == "review"  # type: ignore[index]


async def test_raw_responses(client: openai.AsyncOpenAI) -> None:
    response = await client.moderations.with_raw_response.create(input=[picture(255)])
    assert response.http_response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.parse().results[0].flagged is False


def at(url: str) -> Any:
    return [{"type": "image_url", "image_url": {"url": url}}]


@pytest.mark.parametrize(
    ("sent", "told", "param"),
    [
        ("a text alone", "0 pictures and 1 texts", "input"),
        (["two", "texts"], "0 pictures and 2 texts", "input"),
        ([picture(1), picture(2)], "2 pictures and 0 texts", "input"),
        ([], "0 pictures", "input"),
        (7, "valid array", "input"),
        ([{"type": "video"}], "'video'", "input[0]"),
        ([{"type": "image_url"}], "required", "input[0].image_url.image_url"),
        (at("data:image/png;base64,!!"), "not base64", "input"),
        (at("data:image/png,abc"), "data:image/png;base64", "input"),
        (at("data:image/png;base64,aaaa"), "no picture in a known format", "input"),
        (at("https://example.org/x.png"), "fetches no pictures by URL", "input"),
        (at("file:///etc/passwd"), "fetches no pictures by URL", "input"),
        ([picture(1), text("a" * 9000)], "9,000 bytes", "input"),
    ],
)
async def test_bad_input(client: openai.AsyncOpenAI, sent: Any, told: str, param: str) -> None:
    with pytest.raises(openai.APIStatusError) as error:
        await client.moderations.create(input=sent)
    assert error.value.status_code == (413 if "9,000" in told else 400)
    assert isinstance(error.value.body, dict)
    assert set(error.value.body) == {"message", "type", "param", "code"}
    assert told in error.value.body["message"]
    assert (error.value.type, error.value.param) == ("invalid_request_error", param)


async def test_an_unknown_policy(client: openai.AsyncOpenAI) -> None:
    for name in ("nope", "gate:7"):
        with pytest.raises(openai.NotFoundError) as error:
            await client.moderations.create(model=name, input=[picture(255)])
        assert (error.value.code, error.value.param) == ("model_not_found", "model")


async def test_overload_is_429_with_a_hint_that_the_client_follows(app: App, client: openai.AsyncOpenAI) -> None:
    gate = Gate(app, "image_encoder")
    busy = asyncio.create_task(client.moderations.create(input=[picture(61)]))
    try:
        await until(lambda: gate.computed == 1)
        with pytest.raises(openai.RateLimitError) as error:
            await client.moderations.create(input=[picture(62)])
        assert error.value.code == "rate_limit_exceeded"
        assert int(error.value.response.headers["retry-after"]) >= 1
        patient = asyncio.create_task(client.with_options(max_retries=3).moderations.create(input=[picture(63)]))
        await asyncio.sleep(0.05)
    finally:
        gate.release()
    assert (await busy).results[0].flagged
    assert (await patient).results[0].flagged


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b'{"input": {"type": "text"}}', b"null"])
async def test_bodies_that_are_no_request(app: App, body: bytes) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.post(f"http://127.0.0.1:{app.rest_port}/v1/moderations", content=body)
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_categories_and_severity_can_be_chosen(tmp_path: Path) -> None:
    face = settings(tmp_path, categories={"too_dark": "brightness"}, flagged_from="review")
    async with running(face) as app, connect(app) as client:
        (result,) = (await client.moderations.create(input=[text("a cat"), picture(110)])).results
    assert result.flagged
    assert result.to_dict()["categories"] == {"too_dark": True}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its certificate with openssl")
async def test_a_picture_by_url_where_the_settings_name_its_host(tmp_path: Path) -> None:
    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(answer(200, flat(51)) if asked.target == "/dark.png" else answer(404))
        await writer.drain()

    certificate = make_certificate(tmp_path / "tls", "localhost")
    async with website(reply, certificate) as site:
        urls = {
            "hosts": ["localhost"],
            "ports": [site.port],
            "ca_file": certificate[1],
            "allow_private_addresses": True,
        }
        configured = settings(tmp_path, urls=urls)
        async with running(configured) as app, connect(app) as client:
            (result,) = (await client.moderations.create(input=at(f"https://localhost:{site.port}/dark.png"))).results
            assert result.flagged
            for url, told in (
                (f"https://localhost:{site.port}/none.png", "answers 404"),
                ("http://localhost/x", "https"),
            ):
                with pytest.raises(openai.BadRequestError) as error:
                    await client.moderations.create(input=at(url))
                assert (error.value.param, told in error.value.message) == ("input", True)


async def test_it_is_off_by_default(tmp_path: Path) -> None:
    async with running(settings(tmp_path, enabled=False)) as app, connect(app) as client:
        with pytest.raises(openai.NotFoundError):
            await client.moderations.create(input=[picture(255)])


@pytest.mark.parametrize("name", ["sexual", "violence/graphic", "self_harm", "self-harm/intent"])
async def test_no_category_may_pass_for_safety(name: str) -> None:
    with pytest.raises(ValueError, match="read as a judgement of safety"):
        load_settings(None, {"moderation": {"openai": {"categories": {name: "brightness"}}}})


async def test_a_category_of_a_dimension_that_no_policy_looks_at_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="'blur' stands for the dimension 'sharpness', which no policy"):
        async with running(settings(tmp_path, categories={"blur": "sharpness"})):
            raise AssertionError("it started")


values = (
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["image_url", "text", "gate"])
)
parts = st.dictionaries(
    st.sampled_from(["type", "text", "image_url", "url"]),
    st.recursive(
        values, lambda inner: st.dictionaries(st.sampled_from(["url", "type"]), inner, max_size=2), max_leaves=4
    ),
    max_size=4,
)
bodies = st.fixed_dictionaries(
    {}, optional={"input": values | parts | st.lists(values | parts, max_size=3), "model": values, "more": values}
)


async def test_no_body_makes_a_fault(app: App) -> None:
    sent: list[Any] = []

    @examples(deadline=None, max_examples=60)
    @given(bodies)
    def collect(body: Any) -> None:
        sent.append(body)

    collect()
    assert len(sent) > 30
    async with httpx.AsyncClient(trust_env=False, base_url=f"http://127.0.0.1:{app.rest_port}") as http:
        for body in sent:
            response = await http.post("/v1/moderations", json=body)
            assert response.status_code in (400, 404), (body, response.text)
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
