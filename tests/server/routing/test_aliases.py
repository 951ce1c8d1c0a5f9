"""Names that stand for model versions, over every face, while they are moved."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import httpx
import pytest

import critiq
from critiq.aliases import Alias, AliasRoute, AliasTarget
from critiq.errors import CritiqError, FailedPrecondition, InvalidArgument, ModelNotLoaded, NotFound, PermissionDenied
from critiq_server.app import App, StartError
from critiq_server.images.source import RawImage
from critiq_server.queries import Query, Target
from tests.support.bundles import write_bundle, write_simulated
from tests.support.requests import flat
from tests.support.servers import make_settings, running
from tests.support.waiting import until

GREY = RawImage(bytes([51]) * 768, (16, 16, 3))


def clients(app: App) -> list[critiq.AsyncClient]:
    """One over gRPC, one over REST."""
    addresses = (f"localhost:{app.grpc_port}", f"http://localhost:{app.rest_port}")
    return [critiq.AsyncClient(address, retries=0) for address in addresses]


async def version(app: App, model: str = "") -> str:
    result = await app.service.score(Query(GREY, target=Target(model)))
    assert {score.model for score in result} == {"tiny"}
    return result["brightness"].model_version


async def test_an_alias_is_moved_promoted_rolled_back_and_removed_over_both_faces(app: App) -> None:
    for client in clients(app):
        async with client:
            assert await client.set_alias("canary", ["tiny:2"]) == (await client.aliases())[0]
            result = await client.score(flat(51), model="canary")
            assert (result["brightness"].model, result["brightness"].model_version) == ("tiny", "2"), "the real ones"
            assert [model.aliases for model in await client.models() if model.name == "tiny"] == [
                ("default",),
                ("canary",),
                (),
            ]
            moved = await client.set_alias("canary", ["tiny:2", AliasTarget("tiny", "3", 25)])
            assert [(str(target), target.percent) for target in moved.targets] == [("tiny:2", 75), ("tiny:3", 25)]
            promoted = await client.promote_alias("canary")
            assert [str(target) for target in promoted.targets] == ["tiny:3"]
            assert await version(app, "canary") == "3"
            back = await client.rollback_alias("canary")
            assert [str(target) for target in back.targets] == ["tiny:2"], "not to the split that had version 3 in it"
            assert back.history == ()
            await client.remove_alias("canary")
            with pytest.raises(NotFound, match=r"no model 'canary'.*aliases: default"):
                await client.score(flat(51), model="canary")


async def test_the_alias_default_answers_requests_that_name_no_model(app: App) -> None:
    assert await version(app) == "1", "not the newest that is loaded"
    assert await version(app, "tiny") == "2"
    assert app.service.models.get().version == "1"
    assert [model.version for model in app.service.models.list() if model.is_default] == ["1"]
    for client in clients(app):
        async with client:
            assert (await client.model()).version == "1", "clients are told of it too"
    await app.service.routing.set("default", [(AliasTarget("tiny", "3"), True)])
    assert await version(app) == "3", "it was loaded for it"
    with pytest.raises(FailedPrecondition, match="tiny' version '3' stays loaded: the alias 'default' points at it"):
        await app.service.models.unload("tiny", "3")
    await app.service.models.unload("tiny", "1")
    assert (await app.service.routing.rollback("default")).main.version == "1"
    assert await version(app) == "1", "and so was this one"


async def test_other_faces_know_aliases(app: App) -> None:
    await app.service.routing.set("canary", [(AliasTarget("tiny", "2"), True)])
    async with httpx.AsyncClient(base_url=f"http://localhost:{app.rest_port}") as http:
        assert (await http.get("/v2/models/canary/ready")).status_code == 200
        tensor = {"name": "pixels", "datatype": "UINT8", "shape": [1, 16, 16, 3], "data": [51] * 768}
        answer = (await http.post("/v2/models/canary/infer", json={"inputs": [tensor]})).json()
        assert (answer["model_name"], answer["model_version"]) == ("tiny", "2")
        assert answer["outputs"][0]["data"] == [pytest.approx(0.4)]
        stage = (await http.post("/v2/models/canary%2Fimage_encoder/infer", json={"inputs": [tensor]})).json()
        assert (stage["model_version"], stage["outputs"][0]["data"]) == ("2", [pytest.approx(0.4)])
        drift = (await http.get("/v1/drift", params={"model": "canary"})).json()
        assert {entry["model"] for entry in drift["series"]} == {"tiny"}
        described = (await http.get("/v1/models/canary")).json()
        assert (described["name"], described["version"], described["aliases"]) == ("tiny", "2", ["canary"])
        refused = await http.post("/v1/score", params={"model": "canary", "version": "1"}, content=b"x")
        body = await http.post(
            "/v1/score?model=canary&version=1", content=flat(51), headers={"content-type": "image/png"}
        )
        assert refused.status_code == body.status_code == 400
        assert "'canary' is an alias" in body.json()["error"]["message"]
        for kind in ("rank", "compare"):
            images = [{"base64": _base64(flat(level))} for level in (10, 200)]
            asked = {"images": images} if kind == "rank" else {"first": images[0], "second": images[1]}
            assert (await http.post(f"/v1/{kind}", json={**asked, "model": "canary"})).status_code == 200


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


async def test_jobs_and_moderation_go_by_aliases(tmp_path: Path) -> None:
    for number in ("1", "2"):
        write_bundle(tmp_path / "bundles", version=number, bias=0.1 * int(number))
    (tmp_path / "wordy.yaml").write_text(POLICY.format(model="canary"))
    settings = make_settings(
        tmp_path / "bundles",
        models={"aliases": {"canary": ["tiny:1=50", "tiny:2=50"]}, "allow_changes": True},
        jobs={"path": tmp_path / "jobs.db"},
        moderation={"policies": [tmp_path / "wordy.yaml"]},
    )
    pictures = [flat(level) for level in range(0, 240, 12)]
    async with running(settings) as app, critiq.AsyncClient(f"localhost:{app.grpc_port}") as client:
        job = await client.wait_job((await client.submit_job(pictures, model="canary")).id)
        assert job.failed == 0
        results = [entry.result for entry in await client.job_results(job.id)]
        by_job = [result["brightness"].model_version for result in results if result is not None]
        direct = [(await client.score(picture, model="canary"))["brightness"].model_version for picture in pictures]
        assert by_job == direct, "the same picture, the same version"
        assert set(direct) == {"1", "2"}
        verdicts = [await client.moderate(picture, "a red cat") for picture in pictures]
        assert {verdict.scores[0].model_version for verdict in verdicts} == {"1", "2"}
        assert app.service.registry.meant("canary")[1].version == "2"


async def test_switching_back_and_forth_under_load_fails_nobody(app: App) -> None:
    """Twenty switches; the version that is left is unloaded each time, so nothing may hold on to it by name."""
    routing, done, seen = app.service.routing, asyncio.Event(), dict.fromkeys(("1", "2"), 0)
    pictures = [flat(level) for level in (10, 90, 200)]

    async def hammer(client: critiq.AsyncClient, turn: int) -> None:
        while not done.is_set():
            turn += 1
            if turn % 3 == 0:
                ranked = await client.rank(pictures)
                answered = {entry.score.model_version for entry in ranked.ranking if entry.score is not None}
                assert len(answered) == 1, "one version for all pictures of a call"
            elif turn % 3 == 1:
                compared = await client.compare(*pictures[:2])
                answered = {
                    side.model_version for entry in compared.comparisons for side in (entry.first, entry.second)
                }
                assert len(answered) == 1
            else:
                answered = {(await client.score(pictures[0]))["brightness"].model_version}
            for name in answered:
                seen[name] += 1

    callers = [*clients(app), *clients(app)]
    tasks = [asyncio.ensure_future(hammer(client, turn)) for turn, client in enumerate(callers)]
    try:
        for switch in range(20):
            old, new = ("1", "2") if switch % 2 == 0 else ("2", "1")
            await routing.set("default", [(AliasTarget("tiny", new), True)])
            before = seen[new]
            unloading = asyncio.ensure_future(app.service.models.unload("tiny", old))
            await until(lambda new=new, before=before: seen[new] > before + 3 or any(task.done() for task in tasks))  # type: ignore[misc]
            await unloading
        done.set()
        await asyncio.gather(*tasks)
    finally:
        done.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        for client in callers:
            await client.close()
    assert min(seen.values()) > 30
    assert len(app.service.routing.get("default").history) == 10, "as many as are kept"


REFUSED: list[tuple[str, list[str], str | None, type[CritiqError], str]] = [
    ("canary", [], None, InvalidArgument, "at least one target"),
    ("canary", ["tiny:1=50", "tiny:2=40"], None, InvalidArgument, r"50 \+ 40 do not add up to 100"),
    ("canary", ["tiny:1=120", "tiny:2"], None, InvalidArgument, "120 %; more than 0 and at most 100"),
    ("canary", ["tiny:1", "tiny:2"], None, InvalidArgument, "only one target may leave it out"),
    ("canary", ["tiny:1=50", "tiny:1=50"], None, InvalidArgument, "named twice"),
    ("canary", ["tiny:1=nan", "tiny:2=50"], None, InvalidArgument, "nan %"),
    ("canary", ["tiny:1"], "tiny:1=5", InvalidArgument, "is a target itself"),
    ("canary", ["tiny:1"], "tiny:2=0", InvalidArgument, "takes 0 %"),
    ("canary", ["small:1"], None, NotFound, "no model 'small'"),
    ("canary", ["tiny:9"], None, NotFound, "no version '9'"),
    ("tiny", ["tiny:1"], None, InvalidArgument, "name of a model"),
    ("Ca nary", ["tiny:1"], None, InvalidArgument, "no name for an alias"),
]


async def test_what_cannot_be_an_alias_is_refused_with_the_reason(app: App) -> None:
    for client in clients(app):
        async with client:
            for name, targets, shadow, kind, words in REFUSED:
                with pytest.raises(kind, match=words):
                    await client.set_alias(name, targets, shadow=shadow)
    assert [alias.name for alias in app.service.routing.list()] == ["default"]


async def test_json_bodies_say_what_is_wrong(app: App) -> None:
    async with httpx.AsyncClient(base_url=f"http://localhost:{app.rest_port}") as http:
        set_ = await http.put(
            "/v1/aliases/canary", json={"targets": ["tiny:1", {"model": "tiny", "version": "2", "percent": 10}]}
        )
        assert [entry["percent"] for entry in set_.json()["route"]["targets"]] == [90, 10]
        for body, field in (
            ({"targets": ["tiny:1:2"]}, "targets[0]"),
            ({"targets": ["tiny:1=x"]}, "targets[0]"),
            ({"target": "tiny:1"}, "targets"),
            ({"targets": [{"model": "tiny", "share": 5}]}, "targets"),
        ):
            refused = await http.put("/v1/aliases/canary", json=body)
            assert (refused.status_code, refused.json()["error"]["field"][: len(field)]) == (400, field)
        refused = await http.put("/v1/aliases/canary", content=b"tiny:1", headers={"content-type": "text/plain"})
        assert (refused.status_code, refused.json()["error"]["field"]) == (400, "Content-Type")
        other = await http.post("/v1/aliases/canary/rollback", headers={"sec-fetch-site": "cross-site"})
        assert other.status_code == 403
        assert (await http.get("/v1/aliases/nobody")).status_code == 404
        assert (await http.get("/v1/aliases/canary")).json()["name"] == "canary"


async def test_nothing_to_go_back_to_or_promote_is_said(app: App) -> None:
    routing = app.service.routing
    with pytest.raises(FailedPrecondition, match="nothing is known of where the alias 'default' pointed before tiny:1"):
        await routing.rollback("default")
    with pytest.raises(FailedPrecondition, match="one target tiny:1 and no shadow"):
        await routing.promote("default")
    with pytest.raises(NotFound, match="no alias 'canary'; known: default"):
        await routing.promote("canary")


async def test_a_target_that_is_unloaded_while_the_change_is_written_is_loaded_again(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    routing = app.service.routing

    async def unload_meanwhile(name: str, alias: Alias | None) -> None:
        await app.service.models.unload("tiny", "2")

    monkeypatch.setattr(routing, "_keep", unload_meanwhile)
    await routing.set("default", [(AliasTarget("tiny", "2"), True)])
    assert await version(app) == "2"


async def test_no_alias_moves_to_a_version_that_goes_with_the_others_of_its_model(app: App, tmp_path: Path) -> None:
    for number in ("1", "2"):
        write_bundle(tmp_path / "bundles", "other", number)
        await app.service.models.load("other", number)
    registry = app.service.registry
    with registry.lease("other", "1"):
        unloading = asyncio.ensure_future(app.service.models.unload("other"))
        await until(lambda: not registry.serves("other", "1"))
        await app.service.routing.set("canary", [(AliasTarget("other", "2"), True)])
    await unloading
    with registry.lease("canary") as served:
        assert served.model.manifest.version == "2"


async def test_a_broken_target_changes_nothing(app: App, tmp_path: Path) -> None:
    (tmp_path / "bundles" / "tiny" / "3" / "head.onnx").write_bytes(b"something else")
    with pytest.raises(FailedPrecondition, match="was refused"):
        await app.service.routing.set("default", [(AliasTarget("tiny", "3"), True)])
    assert await version(app) == "1"


async def test_without_permission_nobody_changes_an_alias(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    async with running(make_settings(tmp_path, models={"aliases": {"canary": "tiny"}})) as app:
        assert app.service.routing.get("canary").main == AliasTarget("tiny", "1"), "an exact version"
        for client in clients(app):
            async with client:
                for change in (
                    client.set_alias("canary", ["tiny:1"]),
                    client.promote_alias("canary"),
                    client.rollback_alias("canary"),
                    client.remove_alias("canary"),
                ):
                    with pytest.raises(PermissionDenied, match=r"models\.allow_changes is false"):
                        await change


@pytest.mark.parametrize(
    ("aliases", "words"),
    [
        ({"canary": "tiny:7"}, r"models.aliases.canary: model 'tiny' has no version '7'"),
        ({"tiny": "tiny:1"}, "name of a model"),
        ({"default": "spare:1"}, "'default' is not served.*was refused"),
    ],
)
async def test_settings_that_cannot_be_stop_the_start(tmp_path: Path, aliases: dict[str, str], words: str) -> None:
    write_bundle(tmp_path)
    write_bundle(tmp_path, name="spare", expected_shift=0.1)
    with pytest.raises(StartError, match=words):
        async with running(make_settings(tmp_path, models={"aliases": aliases})):
            pass


@pytest.mark.parametrize("text", ["tiny:1:2", "", "tiny:1=half", ["tiny:1=50", "tiny:2=20"], {"targets": []}])
def test_settings_that_cannot_be_read_are_named(tmp_path: Path, text: object) -> None:
    with pytest.raises(ValueError, match=r"models\.aliases\.canary"):
        make_settings(tmp_path, models={"aliases": {"canary": text}})


async def test_an_alias_whose_target_is_gone_says_so_and_others_go_on(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    write_bundle(tmp_path, name="spare", expected_shift=0.1)
    async with running(make_settings(tmp_path, models={"aliases": {"canary": "spare:1"}})) as app:
        assert await version(app) == "1"
        with pytest.raises(ModelNotLoaded, match="golden"):
            await app.service.score(Query(GREY, target=Target("canary")))


POLICY = """
name: wordy
version: "1"
model: {model}
rules: [{{name: few, when: {{dimension: wordiness, below: 0.1}}, decision: reject}}]
"""


@pytest.mark.parametrize("model", ["default", '""'])
async def test_a_target_that_cannot_feed_a_policy_is_refused(tmp_path: Path, model: str) -> None:
    write_bundle(tmp_path / "bundles")
    write_simulated(tmp_path / "bundles")
    policy = tmp_path / "wordy.yaml"
    policy.write_text(POLICY.format(model=model))
    settings = make_settings(
        tmp_path / "bundles",
        models={"aliases": {"default": "tiny:1"}, "allow_changes": True, "load": ("tiny", "simulated")},
        moderation={"policies": [policy]},
    )
    async with running(settings) as app:
        verdict = await app.moderation.moderate(Query(GREY, "a red cat"))
        assert verdict.scores[0].model == "tiny"
        with pytest.raises(FailedPrecondition, match="'simulated' version '1' has no such dimension"):
            await app.service.routing.set("default", [(AliasTarget("simulated", "1"), True)])
        await app.service.routing.set("other", [(AliasTarget("simulated", "1"), True)])
        if model == "default":
            with pytest.raises(FailedPrecondition, match="the policy 'wordy' version '1' is about the alias"):
                await app.service.routing.remove("default")
        else:
            await app.service.routing.remove("default")
            assert (await app.moderation.moderate(Query(GREY, "a red cat"))).scores[0].model == "tiny"


def test_an_alias_knows_its_largest_target() -> None:
    route = AliasRoute((AliasTarget("a", "1", 40), AliasTarget("b", "1", 60)))
    assert Alias("both", route).main.model == "b"
