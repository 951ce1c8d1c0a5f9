"""The chart's values: each described, all checked; what they make of the settings is what the server takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from critiq_server.settings import Settings, load_settings, print_settings
from tests.deploy import charts
from tests.deploy.charts import outcomes, settings_of
from tests.deploy.kubernetes import read
from tools.chart_values import schema, table, values

VALUES = yaml.safe_load((charts.CHART / "values.yaml").read_text())
SCHEMA = json.loads((charts.CHART / "values.schema.json").read_text())


def test_the_schema_and_the_table_are_up_to_date() -> None:
    assert schema() == SCHEMA, "python -m tools.chart generate"
    assert table() in (charts.ROOT / "docs" / "kubernetes.md").read_text(), "python -m tools.chart generate"


def test_every_value_is_described() -> None:
    bare = [".".join(value.path) for value in values() if value.free and not value.description]
    assert [name for name in bare if not name.startswith("settings.")] == []


def test_the_defaults_pass() -> None:
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(VALUES, SCHEMA, jsonschema.Draft7Validator)


def objects(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """All objects of the schema whose names are listed, with the way to them."""
    while "$ref" in node:
        node = SCHEMA["definitions"][node["$ref"].rpartition("/")[2]]
    if node.get("properties"):
        yield path, node
    for name, inner in node.get("properties", {}).items():
        yield from objects(inner, (*path, name))


def at(path: tuple[str, ...], value: Any) -> dict[str, Any]:
    for name in reversed(path):
        value = {name: value}
    return value  # type: ignore[no-any-return]


PLACES = [".".join(path) for path, _ in objects(SCHEMA)]


@pytest.mark.parametrize("place", PLACES)
def test_misspelt_names_are_refused_everywhere(place: str) -> None:
    path = tuple(place.split(".")) if place else ()
    with pytest.raises(jsonschema.ValidationError, match="'misspelt' was unexpected"):
        jsonschema.validate(at(path, {"misspelt": 1}), SCHEMA, jsonschema.Draft7Validator)


def test_every_section_of_the_settings_is_among_them() -> None:
    sections = {f"settings.{name}" for name in Settings.model_fields}
    assert sections <= set(PLACES)
    assert {"settings.limits.image", "settings.jobs.callbacks", "settings.features.redis"} <= set(PLACES)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("replicaCount", -1),
        ("replicaCount", "two"),
        ("image.pullPolicy", "Sometimes"),
        ("image.digest", "sha256:1234"),
        ("gpu.target", "cpu"),
        ("autoscaling.kind", "vpa"),
        ("autoscaling.queueSeconds", 0),
        ("models.source", "s3"),
        ("models.mountPath", "models"),
        ("service.type", "ExternalName"),
        ("service.restPort", 70000),
        ("metrics.serviceMonitor.interval", "often"),
        ("podLabels", {"a": 1}),
        ("settings.server.rest_port", 70000),
        ("settings.log.level", "loud"),
        ("settings.engine.background", [255, 255]),
        ("settings.compat.cosmos.token", "secret"),
        ("settings.jobs.callbacks.secrets", ["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"]),
        ("settings.features.redis.url", "redis://user:password@redis:6379/0"),
        ("settings.lmm.remote.api_key", "secret"),
    ],
)
def test_wrong_values_are_refused(path: str, value: Any) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(at(tuple(path.split(".")), value), SCHEMA, jsonschema.Draft7Validator)


def test_all_settings_of_a_server_are_taken() -> None:
    """What ``critiq serve --print-config`` prints can be pasted below ``settings``."""
    everything = yaml.safe_load(print_settings(load_settings(None, {})))
    jsonschema.validate({"settings": everything}, SCHEMA, jsonschema.Draft7Validator)


@pytest.mark.parametrize(
    "settings",
    [
        {"compat": {"rewards": {"a": "visual_quality", "b": {"dimension": "alignment", "scale": "raw"}}}},
        {"models": {"aliases": {"a": "m:1", "b": ["m:1=90", "m:2=10"], "c": {"targets": "m:1", "shadow": "m:2=5"}}}},
        {"security": {"tls": {"min_version": 1.3}}},
        {"moderation": {"policies": "policies"}},
        {"engine": {"background": [0, 0, 0]}, "features": {"redis": {"url": "rediss://valkey:6379/1"}}},
    ],
)
def test_short_forms_of_settings_are_taken_too(settings: dict[str, Any]) -> None:
    load_settings(None, settings)
    jsonschema.validate({"settings": settings}, SCHEMA, jsonschema.Draft7Validator)


def test_the_server_takes_the_settings_of_every_render(tmp_path: Path) -> None:
    charts.need_helm()
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "secrets").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    files = charts.values_files()
    for name, outcome in zip(files, outcomes(list(files.values())), strict=True):
        text = settings_of(read(outcome["text"]))
        path = tmp_path / f"{name}.yaml"
        path.write_text(text.replace("/etc/critiq/", f"{tmp_path}/"))
        settings = load_settings(path, {})
        asked = files[name].get("settings", {})
        found = yaml.safe_load(print_settings(settings))
        for place, value in leaves({**asked, "log": {"format": "json"}}):
            assert walk(found, place) == value or place[-1] == "url", (name, place)
        assert settings.server.host == "0.0.0.0"


def leaves(node: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def walk(node: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        node = node[name]
    return node


def test_the_page_names_only_values_that_exist() -> None:
    page = (charts.ROOT / "docs" / "kubernetes.md").read_text()
    known = {".".join(value.path) for value in values()} | {f"settings.{name}" for name in Settings.model_fields}
    firsts = set(VALUES)
    for name in re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z_]+)+)`", page):
        if name.split(".")[0] in firsts and not name.startswith("settings."):
            assert name in known, name
