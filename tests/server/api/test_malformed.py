"""Bodies, headers and names that are no request at all: refused in words, never with a traceback or a 500."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from critiq.v1 import scoring_pb2
from tests.server.api.conftest import REQUEST_BYTES, Server
from tests.support import requests
from tests.support.faces import PROTOBUF, Refusal, http_refusal

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"content-type": "application/json"}
PICTURE = base64.b64encode(requests.flat()).decode()
SCORE = "/critiq.v1.Scoring/Score"


def with_prompt(prompt: bytes) -> bytes:
    """A ``ScoreRequest`` whose prompt is any bytes: field 2, length-delimited."""
    assert len(prompt) < 128
    return requests.score().SerializeToString() + b"\x12" + bytes([len(prompt)]) + prompt


async def posted(server: Server, path: str = "/v1/score", **options: Any) -> Refusal:
    response = await server.ports.http.post(path, **options)
    assert response.status_code >= 400, response.text
    assert "Traceback" not in response.text
    return http_refusal(response)


async def test_a_prompt_that_is_not_utf8_over_grpc(server: Server) -> None:
    refusal = await server.ports.grpc(SCORE, with_prompt(b"caf\xe9"))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
    assert "UTF-8" in refusal.message


async def test_a_prompt_that_is_not_utf8_over_rest_as_protobuf(server: Server) -> None:
    refusal = await posted(server, content=with_prompt(b"caf\xe9"), headers={"content-type": PROTOBUF})
    assert (refusal.status, refusal.code) == (400, "INVALID_ARGUMENT")
    assert "UTF-8" in refusal.message


async def test_a_prompt_that_is_not_utf8_as_json(server: Server) -> None:
    body = json.dumps({"prompt": "X", "image": {"base64": PICTURE}}).encode().replace(b"X", b"caf\xe9", 1)
    refusal = await posted(server, content=body, headers=JSON)
    assert (refusal.status, refusal.code) == (400, "INVALID_ARGUMENT")
    assert "unicode" in refusal.message.lower()


async def test_a_lone_surrogate_as_json(server: Server) -> None:
    body = json.dumps({"prompt": "\ud800", "image": {"base64": PICTURE}})
    refusal = await posted(server, content=body, headers=JSON)
    assert (refusal.status, refusal.code) == (400, "INVALID_ARGUMENT")
    assert "JSON" in refusal.message


async def test_a_prompt_that_is_not_utf8_in_a_form(server: Server) -> None:
    refusal = await posted(server, data={"prompt": b"caf\xe9"}, files={"image": requests.flat()})
    assert (refusal.status, refusal.code, refusal.field) == (400, "INVALID_ARGUMENT", "prompt")
    assert "UTF-8" in refusal.message


@pytest.mark.parametrize("query", ["prompt=caf%E9", "prompt=%ED%A0%80"])
async def test_a_prompt_that_is_not_utf8_in_the_url(server: Server, query: str) -> None:
    refusal = await posted(server, f"/v1/score?{query}", content=requests.flat(), headers={"content-type": "image/png"})
    assert (refusal.status, refusal.code, refusal.field) == (400, "INVALID_ARGUMENT", "URL query")
    assert "UTF-8" in refusal.message


@pytest.mark.parametrize("content_type", ["multipart/form-data; boundary=x", 'multipart/form-data; boundary="x"; a=b'])
async def test_text_beyond_ascii_comes_through_a_form_unharmed(server: Server, content_type: str) -> None:
    parts = [
        b'--x\r\ncontent-disposition: form-data; name="prompt"\r\n\r\n' + "a 猫 café".encode(),
        b'--x\r\ncontent-disposition: form-data; name="image"; filename="\xe7\x8c\xab"\r\n\r\n' + requests.flat(),
        b"--x--\r\n",
    ]
    response = await server.ports.http.post(
        "/v1/score", content=b"\r\n".join(parts), headers={"content-type": content_type}
    )
    assert response.status_code == 200, response.text
    as_json = await server.ports.http.post("/v1/score", json={"prompt": "a 猫 café", "image": {"base64": PICTURE}})
    assert as_json.json()["scores"][1]["from_store"], "the same prompt as in JSON"


@pytest.mark.parametrize(
    ("body", "field", "word"),
    [
        (b"", "", "JSON"),
        (b"{", "", "JSON"),
        (b"[" * 10_000, "", "JSON"),
        (b"[]", "", "object"),
        (b"null", "", "object"),
        (b'{"image": {"base64": "AA=="}, "prmpt": "a"}', "prmpt", "not permitted"),
        (b'{"prompt": "a"}', "image", "required"),
        (b'{"image": {}}', "image", "base64"),
        (b'{"image": {"base64": "AA==", "raw": {"base64": "", "shape": [1, 1, 3]}}}', "image", "exactly one"),
        (b'{"image": {"base64": "not base64!"}}', "image.base64", "base64"),
        (b'{"image": {"base64": 7}}', "image.base64", "string"),
        (b'{"image": {"base64": "AA=="}, "prompt": 7}', "prompt", "string"),
        (b'{"image": {"base64": "AA=="}, "dimensions": "brightness"}', "dimensions", "array"),
        (b'{"image": {"base64": "AA=="}, "priority": "urgent"}', "priority", "interactive"),
        (b'{"image": {"raw": {"base64": "", "shape": [1, 1, 3], "dtype": "int4"}}}', "image.raw.dtype", "uint8"),
        (b'{"image": {"raw": {"base64": "", "shape": [-1, 32, 3]}}}', "image.raw.shape[0]", "greater than"),
        (
            b'{"image": {"raw": {"base64": "", "shape": [1, 99999999999999999999, 3]}}}',
            "image.raw.shape[1]",
            "less than",
        ),
        (b'{"image": {"raw": {"base64": "", "shape": [1e400, 1, 3]}}}', "", ""),
    ],
)
async def test_json_that_does_not_fit(server: Server, body: bytes, field: str, word: str) -> None:
    refusal = await posted(server, content=body, headers=JSON)
    assert (refusal.status, refusal.code) == (400, "INVALID_ARGUMENT")
    assert refusal.field == field or not word, refusal
    assert word.lower() in refusal.message.lower()


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/score/batch", {"items": [{"image": {"base64": PICTURE}}, {"prompt": "a"}]}, "items[1].image"),
        ("/v1/rank", {"images": [], "top_k": -1}, "top_k"),
        ("/v1/compare", {"first": {"base64": PICTURE}}, "second"),
    ],
)
async def test_the_field_says_where_in_the_body(server: Server, path: str, body: Any, field: str) -> None:
    refusal = await posted(server, path, json=body)
    assert (refusal.status, refusal.field) == (400, field)


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/xml", "multipart/mixed"]
)
@pytest.mark.parametrize("path", ["/v1/score", "/v1/score/batch", "/v1/score/stream", "/v1/rank", "/v1/compare"])
async def test_a_body_of_another_type(server: Server, path: str, kind: str) -> None:
    refusal = await posted(server, path, content=b"abc", headers={"content-type": kind})
    assert (refusal.status, refusal.field) == (400, "Content-Type")
    assert kind in refusal.message
    assert "application/json" in refusal.message


async def test_a_body_without_a_type(server: Server) -> None:
    refusal = await posted(server, content=requests.flat())
    assert (refusal.status, refusal.field) == (400, "Content-Type")


@pytest.mark.parametrize(
    ("options", "field", "word"),
    [
        ({"files": {"image": b"x"}, "data": {"promt": "a"}}, "", "promt"),
        ({"files": {"picture": b"x"}}, "image", "0 files"),
        ({"files": [("image", b"x"), ("image", b"y")]}, "image", "2 files"),
        ({"files": {"other": b"x"}, "data": {"image": "text"}}, "image", "file"),
        ({"files": {"image": b"x"}, "data": {"priority": "urgent"}}, "priority", "urgent"),
        ({"content": b"abc", "headers": {"content-type": "multipart/form-data"}}, "body", "boundary"),
        ({"content": b"abc", "headers": {"content-type": "multipart/form-data; boundary=x"}}, "body", "form"),
    ],
)
async def test_a_form_that_does_not_fit(server: Server, options: dict[str, Any], field: str, word: str) -> None:
    refusal = await posted(server, **options)
    assert (refusal.status, refusal.field) == (400, field), refusal
    assert word in refusal.message


async def test_as_many_prompts_as_pictures(server: Server) -> None:
    files = [("image", requests.flat())] * 3
    refusal = await posted(server, "/v1/score/batch", files=files, data={"prompt": ["a", "b"]})
    assert (refusal.status, refusal.field) == (400, "prompt")
    assert "3 pictures and 2 prompts" in refusal.message


async def test_a_query_beside_a_body_that_has_fields_of_its_own(server: Server) -> None:
    refusal = await posted(server, "/v1/score?prompt=a+cat", json={"image": {"base64": PICTURE}})
    assert (refusal.status, refusal.field) == (400, "URL query")


async def test_a_field_of_another_operation_in_a_form(server: Server) -> None:
    refusal = await posted(server, files={"image": requests.flat()}, data={"top_k": "3"})
    assert (refusal.status, "unknown field 'top_k'" in refusal.message) == (400, True)


async def test_unknown_names_in_the_url(server: Server) -> None:
    refusal = await posted(server, "/v1/score?promt=a", content=b"x", headers={"content-type": "image/png"})
    assert refusal.status == 400
    assert "promt" in refusal.message


@pytest.mark.parametrize("value", ["0", "-5", "abc", "1.5", "", "9" * 400, "١"])
async def test_a_bad_timeout_header(server: Server, value: str) -> None:
    headers = {"content-type": "image/png", "critiq-timeout-ms": value.encode()}
    refusal = await posted(server, content=requests.flat(), headers=headers)
    assert (refusal.status, refusal.field) == (400, "Critiq-Timeout-Ms")
    assert len(refusal.message) < 200


async def test_bytes_that_are_no_message(server: Server) -> None:
    for refusal in (
        await server.ports.grpc(SCORE, b"\xff\xff\xff\xff"),
        await posted(server, content=b"\xff\xff\xff\xff", headers={"content-type": PROTOBUF}),
    ):
        assert isinstance(refusal, Refusal)
        assert refusal.code == "INVALID_ARGUMENT"
        assert "ScoreRequest" in refusal.message


@pytest.mark.parametrize("field", ["dtype", "layout"])
async def test_kinds_of_raw_pixels_that_the_contract_does_not_know(server: Server, field: str) -> None:
    request = requests.score(requests.raw([[[1, 2, 3]] * 20] * 20))
    setattr(request.image.raw, field, 7)
    answer = await server.ports.ask("grpc", request)
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.field) == ("INVALID_ARGUMENT", f"image.raw.{field}")


@pytest.mark.parametrize("place", ["model", "version", "dimensions"])
@pytest.mark.parametrize("face", ["grpc", "json"])
async def test_a_very_long_name_is_not_repeated_in_full(server: Server, face: str, place: str) -> None:
    name = "ä" * 300_000
    request = requests.score(**{place: [name] if place == "dimensions" else name})
    answer = await server.ports.ask(face, request)
    assert isinstance(answer, Refusal)
    assert answer.code == "NOT_FOUND", answer.status
    assert len(answer.message) < 1000


@pytest.mark.parametrize("face", ["grpc", "json"])
async def test_a_very_long_id_is_not_repeated_in_full(server: Server, face: str) -> None:
    answer = await server.ports.ask(face, requests.batch([requests.score()] * 2, ["ä" * 300_000] * 2))
    assert isinstance(answer, Refusal)
    assert (answer.code, answer.field) == ("INVALID_ARGUMENT", "items[1].id")
    assert len(answer.message) < 1000


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit(server: Server, chunked: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(REQUEST_BYTES // 2**20 + 1):
            yield bytes(2**20)

    content = pieces() if chunked else bytes(REQUEST_BYTES + 1)
    refusal = await posted(server, content=content, headers=JSON)
    assert (refusal.status, refusal.code, refusal.field) == (413, "TOO_LARGE", "body")
    assert str(REQUEST_BYTES) in refusal.message


async def test_a_message_over_the_limit(server: Server) -> None:
    refusal = await server.ports.grpc(SCORE, bytes(REQUEST_BYTES + 1))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == ("INVALID_ARGUMENT", "TOO_LARGE")
    assert str(REQUEST_BYTES) in refusal.message
    assert str(REQUEST_BYTES + 1) in refusal.message


async def test_a_message_far_over_the_limit_is_not_even_read(server: Server) -> None:
    refusal = await server.ports.grpc(SCORE, bytes(2 * REQUEST_BYTES + 1))
    assert isinstance(refusal, Refusal)
    assert refusal.status == "RESOURCE_EXHAUSTED"


async def test_an_unknown_path_and_a_wrong_method(server: Server) -> None:
    refusal = await posted(server, "/v1/scores")
    assert (refusal.status, refusal.code) == (404, "NOT_FOUND")
    assert "/docs" in refusal.message
    response = await server.ports.http.get("/v1/score")
    assert response.headers["allow"] == "POST"
    refusal = http_refusal(response)
    assert (refusal.status, refusal.code) == (405, "INVALID_ARGUMENT")
    assert "GET /v1/score" in refusal.message


async def test_an_unknown_grpc_method(server: Server) -> None:
    refusal = await server.ports.grpc("/critiq.v1.Scoring/Guess", b"")
    assert isinstance(refusal, Refusal)
    assert refusal.status == "UNIMPLEMENTED"


async def test_refusals_can_be_had_as_protobuf(server: Server) -> None:
    headers = {**JSON, "accept": PROTOBUF}
    response = await server.ports.http.post("/v1/score", content=b"{}", headers=headers)
    error = scoring_pb2.Error()
    error.ParseFromString(response.content)
    assert (response.status_code, error.code, error.field) == (400, "INVALID_ARGUMENT", "image")


async def test_bytes_that_are_not_http(server: Server) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.app.rest_port)
    writer.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
    await writer.drain()
    answer = await asyncio.wait_for(reader.read(), 120)
    writer.close()
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert (await server.ports.http.get("/healthz")).status_code == 200


@pytest.mark.parametrize(
    "start",
    [
        b"GET /healthz HTTP/1.1\r\nHost: a\r\n",
        b"POST /v1/score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n",
    ],
    ids=["headers", "trailers"],
)
async def test_headers_without_end(server: Server, start: bytes) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.app.rest_port)
    writer.write(start)

    async def write_50_megabytes() -> None:
        for _ in range(5000):
            writer.write(b"X-More: " + b"y" * 10_000 + b"\r\n")
            await writer.drain()

    with pytest.raises(ConnectionError):
        await write_50_megabytes()
    writer.close()
    assert (await server.ports.http.get("/healthz")).status_code == 200


async def test_a_large_body_is_not_taken_for_headers(server: Server) -> None:
    refusal = await posted(server, content=bytes(REQUEST_BYTES - 1), headers={"content-type": "image/png"})
    assert refusal.field == "image.encoded"  # it was read as a body


async def test_it_serves_normally_after_all_this(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.ports.http.base_url, trust_env=False) as fresh:
        response = await fresh.post("/v1/score", json={"image": {"base64": PICTURE}})
    assert response.json()["scores"][0]["raw"] == pytest.approx(0.2)
    assert server.app.service.admission.items == 0
    assert server.app.service.admission.bytes == 0
