"""Moderation through every face, and policies that must stop a server or a model."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from google.protobuf.message import Message
from PIL import Image

from critiq import wire_verdicts
from critiq.v1 import scoring_pb2
from tests.server.api.conftest import Server
from tests.support import requests
from tests.support.bundles import edit_manifest, write_bundle
from tests.support.faces import PROTOBUF, Refusal, http_refusal, plain, ports
from tests.support.gates import Gate
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

GATE = """
name: gate
version: {version}
rules:
  - name: dark
    when: {{dimension: brightness, below: {threshold}}}
    decision: reject
    reason: too_dark
    message: The picture is too dark.
  - name: wordy
    when: {{dimension: wordiness, scale: raw, above: 2}}
    decision: review
"""
FLAGS = "{name: flags, version: 1, rules: [{name: see-through, when: {flag: alpha_flattened}, decision: review}]}"
WORDS = """{name: words, version: 1, missing: accept, rules: [
  {name: short, when: {dimension: wordiness, below: 0.01}, decision: reject}]}"""
BRIGHT = "{name: bright, version: 1, rules: [{name: b, when: {dimension: brightness, above: 0.9}, decision: review}]}"


def write_policies(directory: Path) -> Path:
    directory.mkdir()
    (directory / "gate_9.yaml").write_text(GATE.format(version=9, threshold=0.9))
    (directory / "gate_10.yml").write_text(GATE.format(version=10, threshold=0.3))
    for number, text in enumerate((FLAGS, WORDS, BRIGHT)):
        (directory / f"{number}.yaml").write_text(text)
    (directory / ".draft.yaml").write_text("not looked at")
    (directory / "notes.md").write_text("not looked at")
    return directory


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Server]:
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    policies = write_policies(tmp_path_factory.mktemp("settings") / "policies")
    settings = make_settings(
        root,
        moderation={"policies": [policies], "default": "gate"},
        models={"directories": [root], "default": "tiny", "load": ["tiny"], "allow_changes": True},
    )
    async with running(settings) as app, ports(app) as connected:
        yield Server(app, connected)


def request(level: int = 200, prompt: str = "a cat", **asked: Any) -> Any:
    return scoring_pb2.ModerateRequest(image=requests.image(requests.flat(level)), prompt=prompt, **asked)


def fields(message: Any) -> dict[str, str]:
    return {"prompt": message.prompt, "policy": message.policy, "policy_version": message.policy_version}


async def moderate(server: Server, face: str, message: Any) -> dict[str, Any] | Refusal:
    """The verdict through one face, or the refusal."""
    if face == "grpc":
        data = await server.ports.grpc("/critiq.v1.Scoring/Moderate", message.SerializeToString())
        return data if isinstance(data, Refusal) else _verdict(data)
    encoded = message.image.encoded
    body: dict[str, Any] = {
        "json": {"json": {"image": {"base64": base64.b64encode(encoded).decode()}, **fields(message)}},
        "protobuf": {"content": message.SerializeToString(), "headers": {"content-type": PROTOBUF}},
        "form": {"data": fields(message), "files": {"image": ("x", encoded)}},
        "file": {"content": encoded, "params": fields(message), "headers": {"content-type": "image/png"}},
    }[face]
    response = await server.ports.http.post("/v1/moderate", **body)
    if response.status_code != 200:
        return http_refusal(response)
    if response.headers["content-type"] == PROTOBUF:
        return _verdict(response.content)
    found: dict[str, Any] = response.json()["verdict"]
    return found


def _verdict(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = plain(
        wire_verdicts.verdict_from_proto(scoring_pb2.ModerateResponse.FromString(data).verdict)
    )
    return found


async def verdict(server: Server, message: Any) -> dict[str, Any]:
    found = await moderate(server, "grpc", message)
    assert isinstance(found, dict), found
    return found


FACES = ("grpc", "json", "protobuf", "form", "file")


async def test_every_face_gives_the_same_verdict(server: Server) -> None:
    await verdict(server, request(40))  # from here on from the store
    found = [await moderate(server, face, request(40)) for face in FACES]
    assert all(one == found[0] for one in found), found
    told = found[0]
    assert isinstance(told, dict)
    assert (told["decision"], told["policy"], told["policy_version"]) == ("reject", "gate", "10")
    (reason,) = told["reasons"]
    assert reason == {
        "rule": "dark",
        "decision": "reject",
        "code": "too_dark",
        "message": "The picture is too dark.",
        "kind": "below",
        "dimension": "brightness",
        "scale": "calibrated",
        "value": 0.1569,
        "threshold": 0.3,
        "upper": None,
        "flag": None,
    }
    assert [score["dimension"] for score in told["scores"]] == ["brightness", "wordiness"]
    assert told["image"]["resized"]
    assert told["prompt"]["token_count"] == 4


async def test_the_policy_decides_which_dimensions_are_scored(server: Server) -> None:
    found = await verdict(server, request(255, policy="bright"))
    assert [score["dimension"] for score in found["scores"]] == ["brightness"]
    assert (found["decision"], found["reasons"][0]["value"]) == ("review", 1.0)


async def test_versions(server: Server) -> None:
    assert (await verdict(server, request(150)))["decision"] == "review", "three tokens times 0.6: raw above 2"
    assert (await verdict(server, request(150, prompt="cat")))["decision"] == "accept"
    older = await verdict(server, request(150, policy="gate", policy_version="9"))
    assert (older["decision"], older["policy_version"]) == ("reject", "9")


@pytest.mark.parametrize("face", FACES)
async def test_what_there_is_not_is_named_with_what_there_is(server: Server, face: str) -> None:
    unknown = await moderate(server, face, request(policy="nope"))
    assert isinstance(unknown, Refusal)
    assert (unknown.status, unknown.code, unknown.field) == (
        "NOT_FOUND" if face == "grpc" else 404,
        "NOT_FOUND",
        "policy",
    )
    assert unknown.message == "there is no policy 'nope'; there are bright, flags, gate, words"
    version = await moderate(server, face, request(policy="gate", policy_version="11"))
    assert isinstance(version, Refusal)
    assert (version.field, version.message) == (
        "policy_version",
        "the policy 'gate' has no version '11'; it has 9, 10",
    )


@pytest.mark.parametrize("face", FACES)
async def test_a_picture_that_cannot_be_read_is_an_error_whatever_the_policy_says(server: Server, face: str) -> None:
    for policy in ("gate", "words", "flags"):
        broken = request(prompt="", policy=policy)
        broken.image.encoded = b"no picture"
        refused = await moderate(server, face, broken)
        assert isinstance(refused, Refusal), policy
        assert (refused.code, refused.field) == ("INVALID_ARGUMENT", "image.encoded")


async def test_without_a_prompt_the_policy_says_what_a_missing_score_means(server: Server) -> None:
    found = await verdict(server, request(200, prompt=" \n"))
    assert found["decision"] == "review"
    (reason,) = found["reasons"]
    assert (reason["kind"], reason["code"], reason["dimension"]) == ("missing", "score_missing", "wordiness")
    assert "needs the prompt" in reason["message"]
    assert [score["dimension"] for score in found["scores"]] == ["brightness"]
    dark = await verdict(server, request(40, prompt=""))
    assert [reason["kind"] for reason in dark["reasons"]] == ["below", "missing"]
    assert dark["decision"] == "reject"
    waved = await verdict(server, request(200, prompt="", policy="words"))
    assert (waved["decision"], waved["reasons"][0]["kind"]) == ("accept", "missing")


async def test_flags_of_the_reports(server: Server) -> None:
    file = BytesIO()
    Image.new("RGBA", (40, 30), (200, 200, 200, 128)).save(file, "PNG")
    message = scoring_pb2.ModerateRequest(image=requests.image(file.getvalue()), prompt="a cat", policy="flags")
    found = await verdict(server, message)
    assert (found["decision"], found["reasons"][0]["flag"]) == ("review", "alpha_flattened")
    # Every dimension that there can be: a policy over flags alone names none.
    assert [score["dimension"] for score in found["scores"]] == ["brightness", "wordiness"]
    assert (await verdict(server, request(policy="flags")))["decision"] == "accept"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "image"),
        ({"image": {"base64": "!!"}}, "image.base64"),
        ({"image": {"base64": ""}, "polcy": "gate"}, "polcy"),
        ({"image": {"base64": ""}, "policy": 3}, "policy"),
        ({"image": {"base64": ""}, "model": "tiny"}, "model"),
        ({"image": {"base64": ""}, "priority": "now"}, "priority"),
        ({"image": {"base64": "", "url": "https://example.org/x.png"}}, "image"),
    ],
)
async def test_bad_bodies(server: Server, body: dict[str, Any], field: str) -> None:
    refused = http_refusal(await server.ports.http.post("/v1/moderate", json=body))
    assert (refused.status, refused.field) == (400, field)


async def test_bad_fields_beside_a_file(server: Server) -> None:
    picture = {"content": requests.flat(), "headers": {"content-type": "image/png"}}
    refused = http_refusal(await server.ports.http.post("/v1/moderate?model=tiny", **picture))
    assert "'model'" in refused.message
    assert "policy_version" in refused.message
    form = {"files": {"image": ("x", requests.flat())}, "data": {"dimensions": "brightness"}}
    assert "'dimensions'" in http_refusal(await server.ports.http.post("/v1/moderate", **form)).message
    two = [("image", ("x", requests.flat())), ("image", ("y", requests.flat()))]
    assert http_refusal(await server.ports.http.post("/v1/moderate", files=two)).field == "image"


async def test_a_prompt_has_its_limits(server: Server) -> None:
    refused = await moderate(server, "json", request(prompt="a" * 9000))
    assert isinstance(refused, Refusal)
    assert (refused.status, refused.field) == (413, "prompt")


async def test_the_deadline_holds(server: Server) -> None:
    gate = Gate(server.app, "image_encoder")
    try:
        message = request(77)
        late = await server.ports.grpc("/critiq.v1.Scoring/Moderate", message.SerializeToString(), timeout=0.3)
        assert isinstance(late, Refusal)
        assert late.status == "DEADLINE_EXCEEDED"
    finally:
        gate.release()


async def test_policies_are_listed_alike_over_both_faces(server: Server) -> None:
    data = await server.ports.grpc("/critiq.v1.Scoring/Policies", b"")
    assert isinstance(data, bytes)
    over_grpc = [
        plain(wire_verdicts.policy_from_proto(one)) for one in scoring_pb2.PoliciesResponse.FromString(data).policies
    ]
    over_rest = (await server.ports.http.get("/v1/policies")).json()["policies"]
    assert over_grpc == over_rest
    assert [(one["name"], one["version"], one["is_default"]) for one in over_rest] == [
        ("bright", "1", False),
        ("flags", "1", False),
        ("gate", "9", False),
        ("gate", "10", True),
        ("words", "1", False),
    ]
    gate = over_rest[3]
    assert (gate["dimensions"], gate["rules"]) == (["brightness", "wordiness"], ["dark", "wordy"])
    assert (gate["default"], gate["missing"], over_rest[4]["missing"]) == ("accept", "review", "accept")


async def test_decisions_are_counted(server: Server) -> None:
    def counted() -> tuple[float | None, float | None]:
        registry = server.app.metrics.registry
        decisions = {"policy": "bright", "decision": "review"}
        calls = {"operation": "moderate", "model": "tiny", "code": "OK"}
        return (
            registry.get_sample_value("critiq_decisions_total", decisions),
            registry.get_sample_value("critiq_requests_total", calls),
        )

    await verdict(server, request(255, policy="bright"))
    before = counted()
    await verdict(server, request(255, policy="bright"))
    after = counted()
    assert [new - (old or 0) for new, old in zip(after, before, strict=True) if new is not None] == [1, 1]


async def test_many_at_once_share_batches_and_computations(server: Server) -> None:
    found = await asyncio.gather(*(verdict(server, request(level % 8 * 30, policy="bright")) for level in range(48)))
    assert [one["decision"] for one in found] == [
        "review" if level % 8 * 30 / 255 > 0.9 else "accept" for level in range(48)
    ]


async def test_the_openapi_document_has_the_routes(server: Server) -> None:
    document = (await server.ports.http.get("/openapi.json")).json()
    body = document["paths"]["/v1/moderate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ModerateJson"}
    assert "ModerateJson" in document["components"]["schemas"]
    assert "/v1/policies" in document["paths"]


async def test_a_new_model_version_that_a_policy_cannot_use_is_refused_and_the_old_one_serves(
    server: Server,
) -> None:
    root = server.app.settings.models.directories[0]
    bundle = write_bundle(root, version="2")
    dimensions = json.loads((bundle / "manifest.json").read_text())["dimensions"]
    dimensions[0]["calibration"] = None
    edit_manifest(bundle, dimensions=dimensions)
    refused = http_refusal(await server.ports.http.post("/v1/models/tiny/load?version=2"))
    assert (refused.status, refused.code) == (409, "FAILED_PRECONDITION")
    assert "compares calibrated values of 'brightness', and the model 'tiny' version '2' has no" in refused.message
    assert (await verdict(server, request(40)))["scores"][0]["model_version"] == "1"


async def test_an_unknown_decision_of_a_later_server_is_no_acceptance() -> None:
    message: Message = scoring_pb2.Verdict(policy="p")
    message.ParseFromString(message.SerializeToString() + bytes([0x08, 0x2A]))  # decision: 42
    assert isinstance(message, scoring_pb2.Verdict)
    assert wire_verdicts.verdict_from_proto(message).decision == "review"
