"""Where the faces of trainers' clients listen, and what their settings may be."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from critiq_server.app import App
from critiq_server.listening import StartError
from critiq_server.settings import RewardSettings, load_settings, print_settings
from tests.compat.trainers import trainer_server
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings


def test_a_reward_may_be_written_as_its_dimension() -> None:
    rewards = {"short": "visual_quality", "long": {"dimension": "alignment", "scale": "raw", "model": "m"}}
    found = load_settings(None, {"compat": {"rewards": rewards}}).compat.rewards
    assert found["short"] == RewardSettings(dimension="visual_quality")
    assert (found["long"].scale, found["long"].model) == ("raw", "m")


@pytest.mark.parametrize(
    ("compat", "words"),
    [
        ({"pickle": {"listeners": ["18086"]}}, "PORT=REWARD"),
        ({"pickle": {"listeners": ["99999=quality"]}}, "'99999=quality'"),
        ({"flow_factory": {"listeners": ["x=quality"]}}, "PORT=REWARD"),
        ({"unirl": {"listeners": ["8001=quality"]}}, "of the form PORT"),
        ({"rewards": {"a": {"dimension": "b", "scale": "stars"}}}, "calibrated"),
        ({"rewards": {"a": {}}}, "dimension"),
        ({"rewards": 7}, "dictionary"),
    ],
)
def test_settings_that_mean_nothing_are_refused(compat: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        load_settings(None, {"compat": compat})


def test_pickles_from_beyond_this_machine_are_asked_for_twice() -> None:
    flags: dict[str, Any] = {"server": {"host": "0.0.0.0"}, "compat": {"pickle": {"enabled": True}}}
    with pytest.raises(ValidationError, match=r"server.host is 0.0.0.0; set compat.host"):
        load_settings(None, flags)
    flags["compat"]["host"] = "0.0.0.0"
    assert load_settings(None, flags).compat.pickle.enabled
    # On ports of their own they stay on loopback, wherever the rest listens.
    flags["compat"] = {"pickle": {"listeners": ["18086=quality"]}}
    assert load_settings(None, flags).compat.host == "127.0.0.1"


def test_a_token_is_not_printed() -> None:
    settings = load_settings(None, {"compat": {"cosmos": {"token": "very-secret"}}})
    assert "very-secret" not in print_settings(settings)


async def test_listeners_are_on_loopback_and_close_with_the_server(tmp_path: Path) -> None:
    async with trainer_server(tmp_path, pickle={"listeners": ["0=bright", "0=words"]}) as app:
        ports = app.compat_ports
        assert len(set(ports)) == 2
        for port in ports:
            socket.create_connection(("127.0.0.1", port)).close()
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


async def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        compat = {"pickle": {"listeners": [f"{port}=bright"]}}
        with pytest.raises(StartError, match=rf"{port} .*compat.pickle.listeners {port}=bright"):
            await App(make_settings(tmp_path, compat=compat)).start()


def test_the_settings_in_the_documentation_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text()
    config = tmp_path / "critiq.yaml"
    config.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    compat = load_settings(config).compat
    assert compat.pickle.listeners == ("18086=quality", "18085=match")
    assert set(compat.rewards) == {"quality", "match", "looks"}
    assert all(getattr(compat, face).enabled for face in ("pickle", "flow_factory", "unirl", "cosmos"))
