"""Policies as YAML files: reading, with errors that name the file and the rule, and writing."""

from __future__ import annotations

import os
import reprlib
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from critiq_server.scoring.policies import Policy
from critiq_server.strict_yaml import strict_load

SUFFIXES = (".yaml", ".yml")
MAX_BYTES = 1_000_000


class PolicyError(ValueError):
    """A policy cannot be used; the message says which file and rule, with which value, and what is due."""


def read_policy(path: Path) -> Policy:
    """The policy in a file. Raises ``PolicyError``."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PolicyError(f"{path}: {path.stat().st_size} bytes; a policy has at most {MAX_BYTES}")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    return parse_policy(text, str(path))


def parse_policy(text: str, source: str = "policy") -> Policy:
    """The policy in YAML text; ``source`` names it in errors. Raises ``PolicyError``."""
    try:
        found = strict_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that there is not
        raise PolicyError(f"{source}: this is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise PolicyError(f"{source}: a policy has fields such as name: and rules:, this is {_shown(found)}")
    try:
        return Policy.model_validate(found)
    except ValidationError as error:
        problems = [f"{source}: {_place(problem['loc'], found)}{_told(problem)}" for problem in error.errors()]
        raise PolicyError("\n".join(problems)) from error


def files_in(path: Path) -> list[Path]:
    """The policy files of a directory, sorted; of a file itself. Raises ``PolicyError`` if there is none."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith("."))
    if not found:
        raise PolicyError(f"{path}: the directory holds no policy ({', '.join('*' + suffix for suffix in SUFFIXES)})")
    return found


def policy_yaml(policy: Policy) -> str:
    """YAML that :func:`parse_policy` reads back to the same policy."""
    plain = policy.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    # Both are always written: what holds where no rule speaks should not have to be looked up.
    first = ("name", "version", "description", "model", "model_version")
    head: dict[str, Any] = {name: plain.pop(name) for name in first if name in plain}
    plain = {**head, "default": policy.default, "missing": policy.missing, **plain}
    text: str = yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text


def write_policy(path: Path, policy: Policy, comment: str = "") -> None:
    """Writes the file in one piece: another reader sees the old policy or the new one.

    Args:
        comment: stands at the top, each line behind a ``#``.
    """
    lines = "".join(f"# {line}".rstrip() + "\n" for line in comment.splitlines())
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(lines + policy_yaml(policy))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class _Dumper(yaml.SafeDumper):
    """Short lists (a ``between``) stay on one line."""

    def represent_sequence(self, tag: str, sequence: Any, flow_style: bool | None = None) -> yaml.SequenceNode:
        flow = all(isinstance(entry, int | float) for entry in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flow)


def _place(location: tuple[int | str, ...], found: dict[str, Any]) -> str:
    """Where in the file, as its author would say it: ``rules[1] 'too poor', when.below: ``."""
    parts = [part for part in location if not str(part).startswith("(")]
    if len(parts) > 1 and parts[0] == "rules" and isinstance(parts[1], int):
        rule = found["rules"][parts[1]]
        name = f" {rule['name']!r}" if isinstance(rule, dict) and isinstance(rule.get("name"), str) else ""
        rest = _joined(parts[2:])
        return f"rules[{parts[1]}]{name}{f', {rest}' if rest else ''}: "
    return f"{_joined(parts)}: " if parts else ""


def _joined(parts: list[int | str]) -> str:
    text = ""
    for part in parts:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def _told(problem: Any) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return "this field is needed"
    if problem["type"] == "extra_forbidden":
        return "there is no such field"
    if problem["type"] == "model_type":
        condition = str(problem["loc"][-1]).startswith("(")
        due = "{dimension: NAME, below: NUMBER} or {flag: NAME}" if condition else "{name: …, when: …, decision: …}"
        message = f"a {'condition' if condition else 'rule'} is due, such as {due}"
    if problem["loc"] == ("version",) and isinstance(problem["input"], float | datetime):
        message = "put the version into quotation marks"
    given = "" if problem["type"] == "value_error" else f" (got {_shown(problem['input'])})"
    return f"{message[:1].lower()}{message[1:]}{given}"


_repr = reprlib.Repr()
_repr.maxlevel, _repr.maxstring, _repr.maxother = 2, 80, 80


def _shown(value: Any) -> str:
    """The start of a value: YAML's aliases can make one that is endless in full."""
    return _repr.repr(value)
