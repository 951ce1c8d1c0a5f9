"""``critiq drift`` against real servers: exit status, merging, files, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image

from critiq import AsyncClient
from critiq_evaluation.commands.drift import main
from critiq_server.app import App
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running

pytestmark = pytest.mark.asyncio(loop_scope="module")
RNG = np.random.default_rng(0)


def url(app: App) -> str:
    return f"http://127.0.0.1:{app.rest_port}"


async def score(app: App, count: int, mean: float) -> None:
    async with AsyncClient(f"127.0.0.1:{app.grpc_port}") as client:
        levels = np.clip(RNG.normal(mean, 30, count), 0, 255)
        pictures = [(np.full((16, 16, 3), int(level), np.uint8), "a cat") for level in levels]
        assert all(result.error is None for result in await client.score_batch(pictures))


async def drift(*arguments: str) -> int:
    return await asyncio.to_thread(main, arguments)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[App]]:
    """Three servers: two whose traffic changed a little, which only both together tell; one in clear alarm."""
    root = tmp_path_factory.mktemp("bundles")
    write_bundle(root)
    settings = {"baseline_requests": 1000, "check_seconds": 0.2, "least_count": 50, "allow_changes": True}
    async with AsyncExitStack() as stack:
        apps = [await stack.enter_async_context(running(make_settings(root, drift=settings))) for _ in range(3)]
        for app, count, mean in zip(apps, (250, 250, 600), (114, 114, 180), strict=True):
            await score(app, 1100, 100)
            await score(app, count, mean)
        await asyncio.sleep(0.5)
        yield apps


async def test_without_an_alarm_the_status_is_0(servers: list[App], capsys: pytest.CaptureFixture[str]) -> None:
    assert await drift("report", "--server", url(servers[0])) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("| model | label | quantity | state |")
    assert {line.split(" | ")[2] for line in lines[2:]} == {
        "brightness",
        "wordiness",
        "pixels",
        "bytes",
        "format",
        "prompt_length",
    }


async def test_an_alarm_is_status_1_with_tables_plots_and_json(
    servers: list[App], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await drift("report", "--server", url(servers[2]), "--out", str(tmp_path / "out")) == 1
    table = capsys.readouterr().out
    assert "| tiny 1 | - | brightness | alarm |" in table
    found = json.loads((tmp_path / "out" / "drift.json").read_text())
    assert found["state"] == "alarm"
    assert table in (tmp_path / "out" / "drift.md").read_text()
    with Image.open(tmp_path / "out" / "drift-1-tiny-1.png") as plot:
        assert plot.width > 1000
        assert len(np.unique(np.asarray(plot.convert("L")))) > 50  # something is drawn


async def test_servers_are_judged_together(servers: list[App], capsys: pytest.CaptureFixture[str]) -> None:
    halves = [argument for app in servers[:2] for argument in ("--server", url(app))]
    counts = []
    for arguments in (halves[:2], halves[2:], halves):
        await drift("report", *arguments, "--json")
        found = json.loads(capsys.readouterr().out)
        entry = next(entry for entry in found["series"] if entry["name"] == "brightness")
        assert entry["sketches"] is None
        counts.append((entry["count"], entry["baseline"]["count"], entry["windows"][entry["telling"]]))
    one, two, both = counts
    assert both[:2] == (one[0] + two[0], one[1] + two[1])
    assert both[2]["count"] == one[2]["count"] + two[2]["count"]
    finer, coarser = (window["comparisons"]["baseline"]["margin"] for *_, window in (both, one))
    assert finer < 0.8 * coarser  # by the square root of 2
    # One that is in alarm by itself is one for all.
    assert await drift("report", *halves, "--server", url(servers[2])) == 1


async def test_a_new_baseline_ends_the_alarm(servers: list[App], capsys: pytest.CaptureFixture[str]) -> None:
    await score(servers[2], 600, 180)
    arguments = ("--server", url(servers[2]), "--model", "tiny")
    assert await drift("baseline", *arguments, "--hours", "1") == 0
    assert "tiny 1 - brightness: 1" in capsys.readouterr().out
    assert await drift("report", "--server", url(servers[2])) == 0
    assert await drift("baseline", *arguments, "--requests", "500", "--name", "brightness") == 0
    assert capsys.readouterr().out.endswith("tiny 1 - brightness: learning\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("report", "--server", "localhost:8001"), "drift is read over REST; give http://host:port"),
        (("report", "--server", "http://127.0.0.1:1"), "http://127.0.0.1:1 was not reached"),
        (("report", "--server", "http://[::1"), "no URL"),
        (("report", "--server", "URL", "--model", "nobody"), "there is no model 'nobody'"),
        (("report", "--server", "URL/v1/models?x="), "did not answer as a critiq server does"),
        (("report", "--server", "URL", "--header", "token"), "not of the form NAME=VALUE"),
        (("baseline", "--server", "URL", "--model", "tiny"), "either --hours or --requests"),
        (("baseline", "--server", "URL", "--model", "tiny", "--hours", "-1"), "more than 0"),
        (("baseline", "--server", "URL"), "Missing option '--model'"),
        (("weather",), "No such command 'weather'"),
    ],
)
async def test_what_cannot_be_done_is_said_in_a_line(
    servers: list[App], capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
) -> None:
    assert await drift(*(argument.replace("URL", url(servers[0])) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert error.startswith("critiq drift: ")
    assert words in error
    assert error.count("\n") == 1
