"""Flags of a command line to settings; what several commands of the server share."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
import yaml
from pydantic import ValidationError

from critiq_server.settings import Settings, load_settings


def settings_from(command: str, config: Path | None, named: Mapping[str, Any], assignments: Sequence[str]) -> Settings:
    """The settings of a command; what is wrong with them is said on stderr, and ends it with status 2.

    Args:
        command: its name, before what is said.
        named: values of options by the setting's path; ``None`` is left out.
        assignments: ``section.name=value``, values in YAML.
    """
    flags: dict[str, Any] = {}
    for path, value in named.items():
        if value is not None:
            _put(flags, path, value)
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise typer.BadParameter(f"{assignment!r} is not of the form section.name=value")
        try:
            _put(flags, path, yaml.safe_load(text))
        except (yaml.YAMLError, TypeError) as error:
            raise typer.BadParameter(f"cannot set {path} to {text!r}: {error}") from error
    try:
        return load_settings(config, flags)
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            where = ".".join(map(str, problem["loc"])) or "settings"
            # What stands for a whole section is long, and may hold what must not be shown.
            section = isinstance(problem["input"], (dict, list)) or problem["type"] == "model_type"
            hidden = section or any(word in where for word in ("secret", "token", "key"))
            got = "" if hidden else f" (got {problem['input']!r})"
            sys.stderr.write(f"{command}: {where}: {problem['msg']}{got}\n")
    except yaml.MarkedYAMLError as error:
        # Not the error's own text, which shows the line.
        line = error.problem_mark.line + 1 if error.problem_mark is not None else 1
        sys.stderr.write(f"{command}: {config}, line {line}: {error.problem}\n")
    except (OSError, yaml.YAMLError, ValueError) as error:
        sys.stderr.write(f"{command}: {error}\n")
    raise typer.Exit(2)


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise TypeError(f"{section} was set to a value before")
    tree[name] = value
