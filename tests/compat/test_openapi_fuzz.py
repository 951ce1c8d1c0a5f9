"""Whatever the OpenAPI document allows, and much that it does not: an answer in its form or a refusal, no fault."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from critiq.errors import BY_CODE
from critiq.v1 import scoring_pb2
from tests.fixtures.images import encoded, photo
from tests.support import requests
from tests.support.bundles import write_bundle
from tests.support.servers import ServerProcess, server_process

SECONDS = 60
REFUSED = {400, 403, 404, 405, 409, 413, 429, 503, 504}
PROTOBUF = "application/x-protobuf"
PNG = encoded(photo(40, 30), "PNG")
PICTURES = [PNG, encoded(photo(31, 47)), PNG[:70], b"", b"GIF89a"]
POLICY = """
name: gallery
version: "1"
default: accept
missing: review
rules:
  - {name: dark, when: {dimension: brightness, below: 0.2}, decision: reject, reason: dark}
"""
KNOWN = {
    "model": "tiny",
    "version": "1",
    "targets": ["tiny:1"],
    "shadow": None,
    "dimension": "brightness",
    "dimensions": ["brightness"],
    "policy": "gallery",
    "policy_version": "1",
    "prompt": "a red cat",
    "at_least": 0.1,
    "url": None,
    "raw": None,
    "hours": None,
    "requests": 500,
    "label": "",
}
"""Values that a generator would not guess; without them all it sees is "no such model"."""

MESSAGES = [
    requests.score(PNG, "a cat"),
    requests.batch([requests.score(PNG, "a cat"), requests.score(b"broken")]),
    requests.rank([PNG, b"broken", PICTURES[1]], "a cat", 1),
    requests.compare(PNG, PICTURES[1], "a cat"),
    scoring_pb2.ModerateRequest(image=requests.image(PNG), policy="gallery"),
]
quick = settings(
    deadline=None, database=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root: Path = tmp_path_factory.mktemp("fuzz")
    write_bundle(root / "bundles")
    (root / "policy.yaml").write_text(POLICY)
    values = {
        "models.directories": [str(root / "bundles")],
        "models.default": "tiny",
        "models.load": ["tiny"],
        "models.allow_changes": True,
        "models.aliases": {"canary": "tiny:1"},
        "drift.allow_changes": True,
        "jobs.path": str(root / "jobs.db"),
        "moderation.policies": [str(root / "policy.yaml")],
    }
    arguments = [part for name, value in values.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    with server_process(arguments, root / "log") as process:
        yield process
        assert process.process.poll() is None, "the server is gone"
        assert '"event": "fault"' not in (root / "log").read_text()


@pytest.fixture(scope="module")
def document(server: ServerProcess) -> Any:
    return httpx.get(f"{server.rest}/openapi.json", trust_env=False).json()


@pytest.fixture(scope="module")
def operations(document: Any, server: ServerProcess) -> list[Any]:
    schemathesis.openapi.format("binary", st.sampled_from(PICTURES))

    @schemathesis.serializer(PROTOBUF, "image/*")
    def as_it_is(context: Any, value: Any) -> bytes:
        return value if isinstance(value, bytes) else json.dumps(value).encode()

    schema = schemathesis.openapi.from_url(f"{server.rest}/openapi.json")
    found = [entry.ok() for entry in schema.get_all_operations()]
    assert len(found) >= 22
    return found


def plausible(value: Any, data: st.DataObject) -> Any:
    """``value`` with most of its pictures, names and numbers turned into ones that exist."""
    if isinstance(value, list):
        return [plausible(entry, data) for entry in value]
    if not isinstance(value, dict):
        return value
    changed = {}
    for name, entry in value.items():
        if name == "base64":
            changed[name] = base64.b64encode(data.draw(st.sampled_from(PICTURES))).decode()
        elif name in KNOWN and data.draw(st.integers(0, 3)):
            changed[name] = KNOWN[name]
        else:
            changed[name] = plausible(entry, data)
    return changed


def check(case: Case) -> int:
    """Sends the case; the answer has the form that the document says, or is a refusal in ours."""
    response = case.call(timeout=SECONDS)
    status = response.status_code
    assert status < 300 or status in REFUSED, f"{status}: {response.content[:500]!r}"
    kind = str(response.headers["content-type"][0]).partition(";")[0]
    if status >= 400 and kind == PROTOBUF:
        assert scoring_pb2.Error.FromString(response.content).code in BY_CODE
    elif status >= 400:
        error = json.loads(response.content)["error"]
        assert error["code"] in BY_CODE
        assert error["message"]
        assert "Traceback" not in error["message"]
    if status not in (405,) and not (kind == "application/x-ndjson" and status == 200):
        case.validate_response(
            response, checks=[response_schema_conformance, status_code_conformance, content_type_conformance]
        )
    return int(status)


def test_the_document_is_whole(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    schemas = document["components"]["schemas"]
    for schema in schemas.values():
        jsonschema_rs.meta.validate({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema})
    for reference in {part.split('"')[0] for part in json.dumps(document).split('"$ref": "')[1:]}:
        assert reference.startswith("#/components/schemas/")
        assert reference.rpartition("/")[2] in schemas
    forms = {path for path, methods in document["paths"].items() if "multipart/form-data" in json.dumps(methods)}
    one, many = {"/v1/score", "/v1/moderate"}, {"/v1/score/batch", "/v1/score/stream", "/v1/rank", "/v1/prefetch"}
    assert forms == one | many | {"/v1/compare"}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            assert any(status.startswith("2") for status in operation["responses"]), path


def explored(operation: Any, examples: int) -> set[int]:
    """Status codes that the operation's allowed requests, made plausible, are answered with."""
    statuses: set[int] = set()

    @settings(quick, max_examples=examples)
    @given(operation.as_strategy(generation_mode=GenerationMode.POSITIVE), st.data())
    def run(case: Case, data: st.DataObject) -> None:
        if case.media_type == PROTOBUF:
            case.body = data.draw(st.sampled_from(MESSAGES)).SerializeToString()
        elif not case.media_type or not case.media_type.startswith("image/"):
            case.body = plausible(case.body, data)
            if case.method == "POST" and case.body:
                case.query = {}
        case.query = {name: KNOWN.get(name, value) for name, value in (case.query or {}).items()}
        if "/models/" in case.path and data.draw(st.booleans()):
            case.path_parameters = {"name": "tiny"}
        if "/aliases/" in case.path and data.draw(st.booleans()):
            case.path_parameters = {"name": "canary"}
        statuses.add(check(case))

    run()
    return statuses


def test_what_the_document_allows(operations: list[Any]) -> None:
    unanswered = [entry for entry in operations if min(explored(entry, 14)) >= 300]
    # A job's name cannot be guessed; the last version of the default model is never unloaded; the alias has no shadow
    # and nothing to promote or to go back to; profiling is off by default.
    never = (
        "/v1/admin/",
        "/v1/jobs/{name}",
        "/v1/models/{name}/unload",
        "/v1/models/{name}/shadow",
        "/v1/aliases/{name}/promote",
        "/v1/aliases/{name}/rollback",
    )
    for entry in unanswered:
        if not any(path in entry.label for path in never):
            # Bad luck: another look at the same operation, long enough that some request is a good one.
            assert min(explored(entry, 200)) < 300, entry.label


def test_what_it_does_not_allow(operations: list[Any]) -> None:
    refused = 0
    for operation in operations:
        varied = operation.body or operation.query or "{version}" in operation.path
        if not varied:  # there is nothing that could be wrong
            continue
        strategy = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(quick, max_examples=8)
        @given(strategy)
        def run(case: Case) -> None:
            nonlocal refused
            refused += check(case) >= 400

        run()
    assert refused > 80


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message.DESCRIPTOR.name)
def test_messages_with_any_bytes_in_them(server: ServerProcess, message: Any) -> None:
    """The binary form over REST: cut off, overwritten and lengthened anywhere."""
    path = {
        "ScoreRequest": "/v1/score",
        "ScoreBatchRequest": "/v1/score/batch",
        "RankRequest": "/v1/rank",
        "CompareRequest": "/v1/compare",
        "ModerateRequest": "/v1/moderate",
    }[message.DESCRIPTOR.name]
    whole = message.SerializeToString()

    with httpx.Client(base_url=server.rest, timeout=SECONDS, trust_env=False) as client:

        @settings(quick, max_examples=40)
        @given(st.integers(0, len(whole)), st.integers(0, 12), st.binary(max_size=12))
        def run(at: int, length: int, instead: bytes) -> None:
            body = whole[:at] + instead + whole[at + length :]
            response = client.post(path, content=body, headers={"content-type": PROTOBUF})
            assert response.status_code == 200 or response.status_code in REFUSED, response.content
            if response.status_code != 200:
                assert scoring_pb2.Error.FromString(response.content).message

        run()
