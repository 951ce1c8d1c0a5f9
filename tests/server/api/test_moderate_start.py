"""Policies that a server starts with: which stop it, and what it is without any, or without one to go by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from critiq_server.listening import StartError
from tests.server.api.conftest import Server
from tests.server.api.test_moderate import GATE, moderate, request, verdict, write_policies
from tests.support.bundles import edit_manifest, write_bundle
from tests.support.faces import Refusal, ports
from tests.support.lmm_bundles import write_with_an_lmm
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def start(root: Path, **moderation: Any) -> str:
    """What a server that must not start says."""
    sections = {"lmm": moderation.pop("lmm")} if "lmm" in moderation else {}
    with pytest.raises(StartError) as error:
        async with running(make_settings(root, moderation=moderation, **sections)):
            raise AssertionError("it started")
    return str(error.value)


async def test_a_policy_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    path = tmp_path / "gate.yaml"
    good = GATE.format(version=1, threshold=0.3)
    cases = [
        (good.replace("below: 0.3", "below: 3"), f"{path}: rules[0] 'dark', when: below 3 is outside the calibrated"),
        (good.replace("brightness", "brigthness"), "compares 'brigthness', and the model 'tiny' version '1' has no"),
        (
            good.replace("version: 1", "version: 1\nmodel: huge"),
            "the policy 'gate' version '1': there is no model 'huge'",
        ),
    ]
    for text, told in cases:
        path.write_text(text)
        assert told in await start(tmp_path, policies=[path])
    path.write_text(good)
    assert "no policy 'other'; known: gate" in await start(tmp_path, policies=[path], default="other")
    assert "cannot be read" in await start(tmp_path, policies=[tmp_path / "none.yaml"])
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "holds no policy" in await start(tmp_path, policies=[empty])
    twin = tmp_path / "twin.yaml"
    twin.write_text(good)
    assert f"{twin}: the policy 'gate' version '1' is in {path} too" in await start(tmp_path, policies=[path, twin])


async def test_a_scale_that_the_model_lacks_stops_the_start(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path)
    dimensions = json.loads((bundle / "manifest.json").read_text())["dimensions"]
    dimensions[0] |= {"calibration": None, "reference": None}
    edit_manifest(bundle, dimensions=dimensions)
    path = tmp_path / "gate.yaml"
    for scale, told in (("calibrated", "no calibration"), ("percentile", "no reference")):
        path.write_text(GATE.format(version=1, threshold=f"0.3, scale: {scale}"))
        assert f"the model 'tiny' version '1' has {told} for it" in await start(tmp_path, policies=[path])


async def test_a_server_without_policies(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with running(make_settings(tmp_path)) as app, ports(app) as connected:
        refused = await moderate(Server(app, connected), "json", request())
        assert isinstance(refused, Refusal)
        assert (refused.status, refused.field) == (404, "policy")
        assert "moderation.policies" in refused.message
        assert (await connected.http.get("/v1/policies")).json() == {"policies": []}


async def test_several_policies_and_no_default(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    policies = write_policies(tmp_path / "policies")
    async with running(make_settings(tmp_path, moderation={"policies": str(policies)})) as app, ports(app) as connected:
        refused = await moderate(Server(app, connected), "json", request())
        assert isinstance(refused, Refusal)
        assert (refused.status, refused.field) == (400, "policy")
        assert refused.message == "name a policy; there are bright, flags, gate, words"


@pytest.mark.parametrize("fallback", [False, True])
async def test_missing_features_leave_the_other_rules_to_decide(tmp_path: Path, fallback: bool) -> None:
    write_with_an_lmm(tmp_path, fallback=fallback)
    path = tmp_path / "gate.yaml"
    path.write_text(GATE.format(version=1, threshold=0.3))
    settings = make_settings(tmp_path, moderation={"policies": [path]}, lmm={"on_miss": "stored"})
    async with running(settings) as app, ports(app) as connected:
        server = Server(app, connected)
        bright, dark = await verdict(server, request(200)), await verdict(server, request(40))
    assert (bright["decision"], dark["decision"]) == ("review", "reject")
    assert [reason["kind"] for reason in dark["reasons"]] == ["below", "missing"]
    (missing,) = bright["reasons"]
    assert missing["dimension"] == "wordiness"
    # A degraded score is told, but its raw value is not compared.
    assert [score["dimension"] for score in bright["scores"]] == ["brightness"] + ["wordiness"] * fallback
    assert ("is degraded" if fallback else "the store lacks") in missing["message"]
