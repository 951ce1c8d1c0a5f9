"""What follows from the chart's values.yaml: the schema of its values, and their table.

A value's type is that of its default, its description the comment above it. ``# @schema {...}`` in that comment adds to
the schema. Beneath ``settings`` stand the server's own settings, so that Helm refuses what the server would refuse.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from critiq_server.settings import Settings

VALUES = Path(__file__).parents[1] / "deploy" / "helm" / "critiq" / "values.yaml"

_STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
_NAMES_OF_STRINGS = {"labels", "commonLabels", "podLabels", "annotations", "podAnnotations", "nodeSelector"}


@dataclass(frozen=True)
class Value:
    """One entry of values.yaml, at ``path``."""

    path: tuple[str, ...]
    default: Any
    description: str
    extra: dict[str, Any]
    """What ``@schema`` says."""

    @property
    def free(self) -> bool:
        """Whether what is inside is not the chart's business: Kubernetes has names for it."""
        return (
            not isinstance(self.default, dict)
            or not self.default
            or self.path == ("settings",)
            or self.path[-1] in _NAMES_OF_STRINGS
            or "additionalProperties" in self.extra
        )


def schema() -> dict[str, Any]:
    """The JSON Schema (draft 7) of the chart's values; unknown names are refused wherever names are ours."""
    settings = _settings_schema()
    root: dict[str, Any] = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        # Helm adds it, for charts that have this one inside.
        "properties": {"global": {"type": "object"}},
        "definitions": settings.pop("definitions"),
    }
    for value in values():
        if value.path[0] == "settings" and len(value.path) > 1:
            continue  # the chart's defaults of settings have the server's schema
        node = root
        for name in value.path[:-1]:
            node = node["properties"][name]
        node.setdefault("properties", {})[value.path[-1]] = settings if value.path == ("settings",) else _typed(value)
    return root


def table() -> str:
    """The values as a Markdown table: those that stand alone, with their defaults."""
    lines = ["| value | default | meaning |", "|---|---|---|"]
    for value in values():
        inside_settings = value.path[0] == "settings"
        if value.free and (not inside_settings or value.description):
            default = "see values.yaml" if value.default and isinstance(value.default, (dict, list)) else _shown(value)
            meaning = value.description.replace("|", "\\|")
            lines.append(f"| `{'.'.join(value.path)}` | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _shown(value: Value) -> str:
    text = yaml.safe_dump(value.default, default_flow_style=True).removesuffix("...\n").strip()
    return f"`{text}`"


def _typed(value: Value) -> dict[str, Any]:
    default = value.default
    node: dict[str, Any] = {"description": value.description} if value.description else {}
    if isinstance(default, bool):
        node |= {"type": "boolean"}
    elif isinstance(default, int):
        node |= {"type": "integer", "minimum": 0}
    elif isinstance(default, float):
        node |= {"type": "number", "minimum": 0}
    elif isinstance(default, str):
        node |= {"type": "string"}
    elif isinstance(default, list):
        node |= {"type": "array"}
    elif value.path[-1] in _NAMES_OF_STRINGS:
        node |= _STRINGS
    elif value.free:
        node |= {"type": "object"}
    else:
        node |= {"type": "object", "additionalProperties": False}
    return node | value.extra


def values() -> Iterator[Value]:
    """The entries of values.yaml, the outer ones first."""
    text = VALUES.read_text()
    lines = text.splitlines()

    def walk(node: yaml.MappingNode, path: tuple[str, ...]) -> Iterator[Value]:
        for key, inner in node.value:
            here = (*path, key.value)
            description, extra = _comment(lines, key.start_mark.line)
            value = Value(here, yaml.safe_load(yaml.serialize(inner)), description, extra)
            yield value
            if isinstance(inner, yaml.MappingNode) and (not value.free or here == ("settings",)):
                yield from walk(inner, here)

    node = yaml.compose(text)
    assert isinstance(node, yaml.MappingNode)  # noqa: S101
    return walk(node, ())


def _comment(lines: list[str], line: int) -> tuple[str, dict[str, Any]]:
    said: list[str] = []
    extra: dict[str, Any] = {}
    while line and (text := lines[line - 1].strip()).startswith("# "):
        line -= 1
        if text.startswith("# @schema "):
            extra = yaml.safe_load(text.removeprefix("# @schema "))
        else:
            said.insert(0, text.removeprefix("# "))
    return " ".join(said), extra


_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
_SHORT_FORMS: dict[tuple[str, ...], dict[str, Any]] = {
    ("AliasSettings", "properties", "targets"): _TEXT,
    ("AliasSettings",): {"anyOf": [_TEXT, _TEXTS]},
    ("CompatSettings", "properties", "rewards", "additionalProperties"): _TEXT,
    ("ModerationSettings", "properties", "policies"): _TEXT,
    ("TlsSettings", "properties", "min_version"): {"enum": [1.2, 1.3]},
}
"""What settings take besides what their types say, which pydantic's schema leaves out."""


def _settings_schema() -> dict[str, Any]:
    """The schema of the server's settings, without what may not stand in a ConfigMap."""
    found = _as_draft_7(Settings.model_json_schema())
    sections = found["definitions"]
    for (*way, name), short in _SHORT_FORMS.items():
        place = sections
        for step in way:
            place = place[step]
        place[name] = {"anyOf": [short, place[name]]}
    sections["RedisSettings"]["properties"]["url"] = {
        "description": "Without a user and a password: those come by redis.existingSecret.",
        "type": ["string", "null"],
        "pattern": "^(redis|rediss|unix)://[^@]*$",
    }
    return found


def _as_draft_7(node: Any) -> Any:
    if isinstance(node, list):
        return [_as_draft_7(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    if node.get("writeOnly"):
        return {"description": "A secret: by a variable of the environment from a Secret, see extraEnv.", "const": ""}
    changed = {}
    for name, entry in node.items():
        if name == "$ref":
            changed[name] = entry.replace("#/$defs/", "#/definitions/")
        elif name == "prefixItems":
            changed |= {"items": _as_draft_7(entry), "additionalItems": False}
        elif name == "$defs":
            changed["definitions"] = _as_draft_7(entry)
        elif not (name == "title" and isinstance(entry, str)):
            changed[name] = _as_draft_7(entry)
    return changed
