"""Aliases outlive a restart, and processes of one machine agree on them."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import httpx
import pytest

from critiq.aliases import Alias, AliasRoute, AliasTarget
from critiq.errors import FailedPrecondition, Unavailable
from critiq.types import Model
from critiq_server.app import App, StartError
from critiq_server.processes.private import private_app
from critiq_server.routing import operations
from critiq_server.routing.state import StateError, StateFile
from critiq_server.settings import Settings
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running
from tests.support.waiting import until


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    for version in ("1", "2"):
        write_bundle(tmp_path / "bundles", version=version)
    models = {
        "allow_changes": True,
        "aliases": {"default": "tiny:1", "canary": "tiny:1"},
        "load": ("tiny:1",),
        "state_file": tmp_path / "state" / "aliases.json",
    }
    return make_settings(tmp_path / "bundles", models=models)


def file_of(settings: Settings) -> Path:
    assert settings.models.state_file is not None
    return settings.models.state_file


async def point(app: App, name: str, version: str) -> None:
    await app.service.routing.set(name, [(AliasTarget("tiny", version), True)])


async def test_what_was_changed_survives_a_restart(settings: Settings) -> None:
    async with running(settings) as app:
        assert not file_of(settings).exists(), "nothing was changed"
        await point(app, "default", "2")
        await app.service.routing.remove("canary")
    async with running(settings) as app:
        assert app.service.models.get().version == "2"
        assert [alias.name for alias in app.service.routing.list()] == ["default"], "the settings' canary stays away"
        assert (await app.service.routing.rollback("default")).main.version == "1", "its history too"
    assert [path.name for path in sorted(file_of(settings).parent.iterdir())] == [".aliases.json.lock", "aliases.json"]


async def test_another_process_takes_a_change_over_and_neither_loses_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "LOOK_SECONDS", 0.02)
    async with running(settings) as one, running(settings) as other:
        await point(one, "default", "2")
        await until(lambda: other.service.models.get().version == "2")
        assert other.service.routing.get("default") == one.service.routing.get("default")
        await asyncio.gather(point(one, "first", "1"), point(other, "second", "2"))
        for app in (one, other):
            await until(lambda app=app: len(app.service.routing.list()) == 4)  # type: ignore[misc]
        await other.service.routing.remove("first")
        await until(lambda: len(one.service.routing.list()) == 3)


async def test_who_moves_an_alias_may_unload_the_old_version_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "LOOK_SECONDS", 3600.0)
    async with running(settings) as one, running(settings) as other:
        for name in ("default", "canary"):
            await point(one, name, "2")
        private = private_app(other.service, lambda: True, lambda: True)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(private), base_url="http://other") as http:
            answer = await http.post("/unload", json={"name": "tiny", "version": "1"})
            assert (answer.status_code, answer.text) == (200, ""), "told by the process that moved it"
            assert (await http.get("/loaded")).json() == ["tiny:2"]
            await point(one, "default", "1")
            await point(one, "canary", "1")
            with pytest.raises(FailedPrecondition, match="stays loaded"):
                await other.service.models.unload("tiny", "1")
            await other.service.models.unload("tiny", "2")
            assert (await http.get("/loaded")).json() == ["tiny:1"], "asked by a caller itself"


async def test_a_caller_that_leaves_while_a_change_is_taken_over_does_not_lose_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "LOOK_SECONDS", 3600.0)
    async with running(settings) as one, running(settings) as other:
        await point(one, "default", "2")
        reached, load = asyncio.Event(), other.service.registry.load

        async def loads_for_long(name: str, version: str = "") -> Model:
            reached.set()
            await asyncio.Event().wait()
            return await load(name, version)

        with monkeypatch.context() as patch:
            patch.setattr(other.service.registry, "load", loads_for_long)
            unloading = asyncio.ensure_future(other.service.models.unload("tiny", "1"))
            await reached.wait()
            unloading.cancel()
            await asyncio.gather(unloading, return_exceptions=True)
        await other.service.routing.catch_up()
        assert other.service.models.get().version == "2"


async def test_a_change_that_another_process_made_in_this_moment_is_not_overwritten(settings: Settings) -> None:
    path = file_of(settings)
    first, second = (Alias("a", AliasRoute((AliasTarget("tiny", version),), 1.0)) for version in ("1", "2"))
    StateFile(path).change("a", first, {})
    with pytest.raises(FailedPrecondition, match="changed by another process"):
        StateFile(path).change("a", second, {})
    StateFile(path).change("a", second, {"a": first})
    assert StateFile(path).read() == {"a": second}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"form": 2}', '{"form": 1}', '{"form": 1, "aliases": {"a": {}}}', "\xff"]
)
async def test_a_file_that_holds_something_else_is_named(settings: Settings, content: str) -> None:
    path = file_of(settings)
    path.parent.mkdir()
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(StartError, match=r"models\.state_file: .*aliases\.json holds no aliases"):
        async with running(settings):
            pass


async def test_a_file_damaged_while_serving_changes_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operations, "LOOK_SECONDS", 0.02)
    seen = ""

    def logged(words: str) -> bool:
        nonlocal seen
        seen += capsys.readouterr().out
        return words in seen

    async with running(settings) as app:
        path = file_of(settings)
        await point(app, "default", "2")
        path.write_text("{")
        await until(lambda: logged("the changed file of aliases is not used"))
        assert app.service.models.get().version == "2"
        with pytest.raises(Unavailable, match="the alias is as it was"):
            await point(app, "default", "1")
        assert app.service.models.get().version == "2"
        await asyncio.sleep(0.1)
        path.unlink()
        await asyncio.sleep(0.1)
        await point(app, "canary", "2")
        assert json.loads(path.read_text())["aliases"].keys() == {"default", "canary"}, (
            "what was known is written again"
        )
        await point(app, "default", "1")
        kept = json.loads(path.read_text())["aliases"]
        # A target that this process cannot load: the alias stays here, and says so; the next one is taken over.
        kept["canary"]["route"]["targets"][0]["version"] = "9"
        kept["new"] = kept["default"]
        path.write_text(json.dumps({"form": 1, "aliases": kept}))
        await until(lambda: logged("an alias stays as it was in this process"))
        assert app.service.routing.get("canary").main.version == "2"


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    alias = Alias("a", AliasRoute((AliasTarget("tiny", "1"),)))
    with pytest.raises(StateError, match=r"cannot be (written|read)"):
        StateFile(tmp_path / "file" / "aliases.json").change("a", alias, None)
