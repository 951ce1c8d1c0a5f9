"""Verdicts in the client and on the command line, from a real server."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import critiq
from critiq import types, wire_verdicts
from critiq.cli import main
from critiq.v1 import scoring_pb2
from critiq_server.app import App
from tests.client.test_wire import image_reports, numbers, prompt_reports, scores, text
from tests.support.bundles import write_bundle
from tests.support.requests import flat
from tests.support.servers import make_settings

POLICY = """
name: gate
version: {version}
description: Dark pictures do not pass.
rules:
  - {{name: dark, when: {{dimension: brightness, below: {below}}}, decision: reject, message: Too dark.}}
  - {{name: dim, when: {{dimension: brightness, below: 0.5}}, decision: review}}
"""


@dataclass
class Urls:
    grpc: str
    http: str


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Urls]:
    """A server in a thread of its own, so that blocking clients can call it."""
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    policies = tmp_path_factory.mktemp("policies")
    for version, below in (("1", 0.1), ("2", 0.3)):
        (policies / f"gate_{version}.yaml").write_text(POLICY.format(version=version, below=below))
    app = App(make_settings(root, moderation={"policies": [policies]}))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(app.start(), loop).result(60)
    yield Urls(f"127.0.0.1:{app.grpc_port}", f"http://127.0.0.1:{app.rest_port}")
    asyncio.run_coroutine_threadsafe(app.stop(grace=2.0), loop).result(60)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def blocking(url: str, call: Callable[[Any], Any]) -> Any:
    with critiq.Client(url, retries=0) as client:
        return call(client)


def asynchronous(url: str, call: Callable[[Any], Any]) -> Any:
    async def run() -> Any:
        async with critiq.AsyncClient(url, retries=0) as client:
            return await call(client)

    return asyncio.run(run())


SHELLS = pytest.mark.parametrize("shell", [blocking, asynchronous])
TRANSPORTS = pytest.mark.parametrize("transport", ["grpc", "http"])


@SHELLS
@TRANSPORTS
def test_a_verdict(server: Urls, transport: str, shell: Any) -> None:
    url = getattr(server, transport)
    verdict = shell(url, lambda client: client.moderate(flat(51), "a cat"))
    assert (verdict.decision, verdict.policy, verdict.policy_version) == ("reject", "gate", "2")
    assert (verdict.reasons[0].rule, verdict.reasons[0].message) == ("dark", "Too dark.")
    assert verdict.reasons[0].value == verdict.scores[0].calibrated == pytest.approx(0.2)
    older = shell(url, lambda client: client.moderate(flat(51), policy="gate", policy_version="1", priority="bulk"))
    assert (older.decision, older.reasons[0].rule) == ("review", "dim")
    assert shell(url, lambda client: client.moderate(flat(200))).reasons == ()


@SHELLS
@TRANSPORTS
def test_policies(server: Urls, transport: str, shell: Any) -> None:
    found = shell(getattr(server, transport), lambda client: client.policies())
    assert [(policy.name, policy.version, policy.is_default) for policy in found] == [
        ("gate", "1", False),
        ("gate", "2", True),
    ]
    assert (found[1].dimensions, found[1].rules, found[1].missing) == (("brightness",), ("dark", "dim"), "review")
    assert found[1].description == "Dark pictures do not pass."


@SHELLS
@TRANSPORTS
def test_errors(server: Urls, transport: str, shell: Any) -> None:
    url = getattr(server, transport)
    with pytest.raises(critiq.NotFound, match="there is no policy 'nope'; there are gate"):
        shell(url, lambda client: client.moderate(flat(51), policy="nope"))
    with pytest.raises(critiq.InvalidArgument, match="image"):
        shell(url, lambda client: client.moderate(b"no picture"))
    with pytest.raises(critiq.InvalidArgument, match="priority"):
        shell(url, lambda client: client.moderate(flat(51), priority="now"))


texts = text | st.sampled_from(["gate", "too dark"])
decisions = st.sampled_from(get_args(types.Decision))
reasons = st.builds(
    types.Reason,
    texts,
    decisions,
    texts,
    texts,
    st.sampled_from(get_args(types.ReasonKind)),
    texts,
    st.none() | st.sampled_from(get_args(types.Scale)),
    st.none() | numbers,
    st.none() | numbers,
    st.none() | numbers,
    st.none() | st.sampled_from(get_args(types.Flag)),
)
verdicts = st.builds(
    types.Verdict,
    decisions,
    st.lists(reasons, max_size=3).map(tuple),
    texts,
    texts,
    st.lists(scores, max_size=3).map(tuple),
    st.none() | image_reports,
    st.none() | prompt_reports,
)
policies = st.builds(
    types.PolicyInfo,
    *[texts] * 5,
    *[st.lists(texts, max_size=3).map(tuple)] * 2,
    decisions,
    decisions,
    st.booleans(),
)


@settings(deadline=None)
@given(verdicts)
def test_verdicts_survive_the_wire(verdict: types.Verdict) -> None:
    data = wire_verdicts.verdict_to_proto(verdict).SerializeToString()
    assert wire_verdicts.verdict_from_proto(scoring_pb2.Verdict.FromString(data)) == verdict


@settings(deadline=None)
@given(policies)
def test_policies_survive_the_wire(policy: types.PolicyInfo) -> None:
    data = wire_verdicts.policy_to_proto(policy).SerializeToString()
    assert wire_verdicts.policy_from_proto(scoring_pb2.Policy.FromString(data)) == policy


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name, level in (("bright", 200), ("dark", 40), ("dim", 100)):
        (tmp_path / f"{name}.png").write_bytes(flat(level))
    return tmp_path


@pytest.fixture
def cli(
    server: Urls, pictures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[str, str]]:
    monkeypatch.chdir(pictures)
    monkeypatch.setenv("CRITIQ_URL", server.grpc)

    def run(*arguments: str, code: int) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["critiq", "moderate", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        assert (ended.value.code or 0) == code, (out, err)
        return out, err

    return run


def test_a_rejected_picture_shows_in_the_exit_code(cli: Any) -> None:
    out, err = cli(".", code=5)
    assert "gate 2" in out
    rows = {name: line for line in out.splitlines() for name in ("bright", "dark", "dim") if f"{name}.png" in line}
    assert "accept" in rows["bright"]
    assert "reject" in rows["dark"]
    assert "Too dark; brightness (calibrated) 0.1569 is below 0.5" in rows["dark"]
    assert "brightness (calibrated) 0.3922 is below 0.5" in rows["dim"]
    assert "1 accepted, 1 to review, 1 rejected, 0 failed" in err


def test_which_decision_fails_can_be_chosen(cli: Any) -> None:
    cli("bright.png", "dim.png", code=0)
    cli("bright.png", "dim.png", "--fail-on", "review", code=5)
    cli("dark.png", "--fail-on", "never", code=0)
    cli("dark.png", "--policy", "gate", "--policy-version", "1", "--fail-on", "reject", code=0)


def test_json_lines_stand_in_the_order_of_the_pictures(cli: Any) -> None:
    out, _ = cli("dim.png", "bright.png", "dark.png", "--json", "--prompt", "a cat", code=5)
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["file"], line["prompt"], line["verdict"]["decision"]) for line in lines] == [
        ("dim.png", "a cat", "review"),
        ("bright.png", "a cat", "accept"),
        ("dark.png", "a cat", "reject"),
    ]
    assert lines[2]["verdict"]["reasons"][0]["threshold"] == 0.3


def test_a_picture_that_fails_does_not_stop_the_others(cli: Any, pictures: Path) -> None:
    (pictures / "broken.png").write_bytes(b"no picture")
    out, err = cli(".", "--json", code=1)
    lines = {line["file"]: line for line in map(json.loads, out.splitlines())}
    assert lines["broken.png"]["error"]["code"] == "INVALID_ARGUMENT"
    assert lines["dark.png"]["verdict"]["decision"] == "reject"
    assert "1 failed" in err


def test_what_there_is_not(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, err = cli("dark.png", "--policy", "nope", code=2)
    assert err == "critiq: the server has no policy 'nope'; name one with --policy, there are: gate 1, gate 2\n"
    cli("none.png", code=2)
    monkeypatch.setenv("CRITIQ_URL", "127.0.0.1:9")
    cli("dark.png", "--retries", "0", code=3)
