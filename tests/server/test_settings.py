"""Defaults < YAML file < environment < flags; what is wrong is refused in one clear line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
import yaml
from pydantic import ValidationError

from critiq_server import cli
from critiq_server.flags import settings_from
from critiq_server.settings import Settings, load_settings, print_settings
from tests.fixtures.images import encoded, photo
from tests.support.bundles import write_bundle
from tests.support.servers import make_settings, running


def write(path: Path, **sections: Any) -> Path:
    path.write_text(yaml.safe_dump(sections))
    return path


def test_the_defaults_listen_on_this_machine_only() -> None:
    settings = load_settings()
    assert (settings.server.host, settings.server.rest_port, settings.server.grpc_port) == ("127.0.0.1", 8000, 8001)
    assert settings.server.metrics_port == 8002
    assert not settings.models.allow_changes


def test_each_source_wins_over_those_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = write(tmp_path / "c.yaml", limits={"in_flight": 301, "prompt_bytes": 302, "timeout_seconds": 3})
    assert load_settings(config).limits.in_flight == 301
    monkeypatch.setenv("CRITIQ_LIMITS__IN_FLIGHT", "401")
    monkeypatch.setenv("CRITIQ_LIMITS__PROMPT_BYTES", "402")
    settings = load_settings(config, {"limits": {"in_flight": 501}})
    assert settings.limits.in_flight == 501, "the flag"
    assert settings.limits.prompt_bytes == 402, "the environment"
    assert settings.limits.timeout_seconds == 3, "the file"
    assert settings.limits.batch_items == 256, "the default"


def test_nested_settings_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRITIQ_LIMITS__IMAGE__MAX_SIDE", "777")
    monkeypatch.setenv("CRITIQ_MODELS__DIRECTORIES", '["/a", "/b"]')
    settings = load_settings()
    assert settings.limits.image.max_side == 777
    assert settings.models.directories == (Path("/a"), Path("/b"))


def test_what_is_said_twice_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("security: {keys_file: keys.yaml}\nserver: {host: 0.0.0.0}\nsecurity: {reload_seconds: 1}\n")
    with pytest.raises(typer.Exit):
        settings_from("critiq serve", config, {}, [])
    assert f"{config}, line 3: the key 'security' is given twice" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(typer.Exit):
        settings_from("critiq serve", config, {}, [])
    assert f"{config} is no YAML text in UTF-8" in capsys.readouterr().err


def test_a_file_without_settings_changes_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.yaml"
    empty.write_text("# nothing yet\n")
    assert load_settings(empty) == load_settings()


@pytest.mark.parametrize(
    ("sections", "place"),
    [
        ({"limit": {"in_flight": 5}}, "limit"),
        ({"limits": {"in_fligth": 5}}, "limits.in_fligth"),
        ({"limits": {"image": {"max_sides": 5}}}, "limits.image.max_sides"),
        ({"limits": {"in_flight": 0}}, "limits.in_flight"),
        ({"limits": {"in_flight": "many"}}, "limits.in_flight"),
        ({"limits": {"in_flight": 8, "batch_items": 9}}, "limits"),
        ({"server": {"rest_port": 70000}}, "server.rest_port"),
        ({"server": {"host": ""}}, "server.host"),
        ({"runtime": {"provider": "tpu"}}, "runtime.provider"),
        ({"log": {"level": "loud"}}, "log.level"),
        ({"server": 5}, "server"),
    ],
)
def test_what_is_wrong_is_refused_with_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sections: dict[str, Any], place: str
) -> None:
    config = write(tmp_path / "c.yaml", **sections)
    with pytest.raises(ValidationError):
        load_settings(config)
    assert cli.main(["--config", str(config), "--print-config"]) == 2
    told = capsys.readouterr().err
    assert f"critiq serve: {place}: " in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--config", "/no/such/file.yaml"], "/no/such/file.yaml"),
        (["--set", "limits.in_flight"], "section.name=value"),
        (["--set", "limits.in_fligth=5"], "limits.in_fligth"),
        (["--set", "limits=5", "--set", "limits.in_flight=6"], "limits"),
        (["--set", "limits.in_flight=[1"], "limits.in_flight"),
        (["--rest-port", "many"], "--rest-port"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--provider", "tpu"], "runtime.provider"),
    ],
)
def test_wrong_flags_are_refused_in_words(capsys: pytest.CaptureFixture[str], arguments: list[str], word: str) -> None:
    assert cli.main([*arguments, "--print-config"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("critiq serve: ")
    assert word in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    "wrong",
    [
        {"jobs": {"callbacks": ["whsec_private"]}},
        {"jobs": {"callbacks": "whsec_private"}},
        {"jobs": {"callbacks": {"secrets": ["whsec_private"]}}},
        {"features": {"redis": "redis://:private@host"}},
    ],
)
def test_errors_do_not_show_what_is_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: dict[str, Any]
) -> None:
    assert cli.main(["--config", str(write(tmp_path / "c.yaml", **wrong)), "--print-config"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("critiq serve: ")
    assert "private" not in told


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "limits: {", "a: b: c"])
def test_a_file_that_holds_no_settings_is_refused_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(text)
    assert cli.main(["--config", str(config), "--print-config"]) == 2
    assert capsys.readouterr().err.startswith("critiq serve: ")


def test_a_damaged_file_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("jobs:\n  callbacks:\n    secrets: [whsec_private, {\n")
    assert cli.main(["--config", str(config), "--print-config"]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"critiq serve: {config}, line ")
    assert "private" not in told


@pytest.mark.parametrize("name", ["CRITIQ_SERVRE__REST_PORT", "CRITIQ_SERVER__REST_PROT"])
def test_a_misspelt_variable_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setenv(name, "9000")
    assert cli.main(["--print-config"]) == 2
    assert name.lower().removeprefix("critiq_").split("__")[-1] in capsys.readouterr().err.lower()


def test_the_printed_configuration_is_one_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--set", "limits.in_flight=300", "--set", "models.directories=[/a]", "--rest-port", "9000"]
    assert cli.main([*flags, "--print-config"]) == 0
    printed = capsys.readouterr().out
    config = tmp_path / "printed.yaml"
    config.write_text(printed)
    settings = load_settings(config)
    assert settings == load_settings(
        None,
        {"limits": {"in_flight": 300}, "models": {"directories": ["/a"]}, "server": {"rest_port": 9000}},
    )
    assert print_settings(settings) == printed


def test_print_config_starts_nothing() -> None:
    code = (
        "import sys; from critiq_server.cli import main; status = main(['--print-config']);"
        "sys.exit(status or (8 if 'uvicorn' in sys.modules else 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["server"]["rest_port"] == 8000


def test_every_setting_says_what_it_is() -> None:
    def undescribed(kind: Any, path: str) -> list[str]:
        found = []
        for name, field in kind.model_fields.items():
            inner = field.annotation
            if hasattr(inner, "model_fields"):
                found += undescribed(inner, f"{path}{name}.")
            elif not field.description and path != "limits.image.":
                found.append(path + name)
        return found

    assert undescribed(Settings, "") == []


async def test_access_log_tells_operation_model_and_code_but_no_prompt(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_bundle(tmp_path)
    async with running(make_settings(tmp_path, log={"access": True})) as app, httpx.AsyncClient() as client:
        url = f"http://127.0.0.1:{app.rest_port}/v1/score?prompt=secret+words"
        await client.post(url, content=encoded(photo()), headers={"content-type": "image/jpeg"})
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "operation=score" in line)
    assert "code=OK" in line
    assert "model=tiny" in line
    assert "secret" not in printed
