"""``critiq models`` moves aliases of a real server."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import critiq
from critiq.cli import main
from tests.support.bundles import write_bundle
from tests.support.requests import flat
from tests.support.servers import ServerProcess, server_process


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = tmp_path_factory.mktemp("commands")
    for version in ("1", "2"):
        write_bundle(root / "bundles", version=version, bias=0.1 * int(version))
    settings = {
        "models.directories": [str(root / "bundles")],
        "models.load": ["tiny:1"],
        "models.default": "tiny",
        "models.aliases": {"default": "tiny:1"},
        "models.allow_changes": True,
    }
    arguments = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    with server_process(arguments, root / "log") as process:
        yield process


@pytest.fixture
def run(
    server: ServerProcess, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs the command in this process; gives what it printed, of a failure the complaint."""

    def run_it(*arguments: str, code: int = 0) -> str:
        monkeypatch.setattr(sys, "argv", ["critiq", "models", *arguments])
        monkeypatch.setenv("CRITIQ_URL", server.grpc)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        shown = capsys.readouterr()
        assert (ended.value.code or 0) == code, shown.err + shown.out
        return shown.out if code == 0 else shown.err

    return run_it


def test_the_way_of_an_upgrade(server: ServerProcess, run: Callable[..., str]) -> None:
    assert "tiny:1" in run("aliases")
    routed = run("route", "default", "tiny:1", "--shadow", "tiny:2=100")
    assert "tiny:2 (100 %)" in routed
    with critiq.Client(server.grpc) as client:
        for level in range(0, 200, 10):
            assert client.score(flat(level))["brightness"].model_version == "1"
        limit = time.monotonic() + 120
        while client.shadow_report("default").scored < 20:
            assert time.monotonic() < limit
            time.sleep(0.05)
        shown = run("shadow", "default")
        assert "tiny:2 beside what was served" in shown
        assert "1.0000" in shown, "the rank correlation"
        assert "20 scored, 0 left out (no room), 0 failed" in shown
        assert "tiny:1 (90 %), tiny:2 (10 %)" in run("route", "default", "tiny:1", "tiny:2=10")
        assert "tiny (default" in run("list")
        promoted: dict[str, Any] = json.loads(run("promote", "default", "--json"))
        assert [target["version"] for target in promoted["route"]["targets"]] == ["2"]
        assert client.score(flat(1))["brightness"].model_version == "2"
        assert "tiny:1" in run("rollback", "default")
        assert client.score(flat(1))["brightness"].model_version == "1"
        assert "removed default" in run("remove", "default")
        assert run("aliases", "--json") == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["route", "default"], "needs targets"),
        (["route"], "needs a name"),
        (["aliases", "default"], "takes no name"),
        (["promote", "default", "tiny:2"], "takes nothing like 'tiny:2'"),
        (["rollback", "default", "--shadow", "tiny:2"], "takes nothing like '--shadow'"),
        (["route", "default", "tiny", "--version", "2"], "takes no --version"),
        (["route", "new", "tiny:1=40"], "do not add up to 100"),
        (["route", "new", "tiny:1=x"], "no percentage"),
        (["route", "new", "tiny:7"], "no version '7'"),
        (["shadow", "nobody"], "no alias 'nobody'"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(run: Callable[..., str], arguments: list[str], words: str) -> None:
    told = run(*arguments, code=2)
    assert words in told
    assert told.count("\n") == 1
