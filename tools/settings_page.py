"""Writes docs/settings.md, every setting of the server, from the settings themselves.

python -m tools.settings_page generate|check
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from critiq_server.settings import Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"

HEAD = """# Every setting

`critiq serve` takes settings from, each over the one before: their defaults, a YAML file (`--config FILE`), the
environment and the command line. `critiq serve --print-config` prints what holds. One setting, said in each place:

    limits: {in_flight: 64}                     # in the file
    CRITIQ_LIMITS__IN_FLIGHT=64                 # in the environment: two underscores between levels
    critiq serve --set limits.in_flight=64      # on the command line, as YAML

A setting that does not exist, or a value that cannot be, stops the start with a message that names it. What follows
is written by `python -m tools.settings_page generate` from the settings themselves.
"""


_NAMES = {
    bool: "yes or no",
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    SecretStr: "secret text",
}


def page() -> str:
    """The whole page."""
    return "\n".join([HEAD, *_section("", Settings, "")]).rstrip() + "\n"


def _section(path: str, model: type[BaseModel], about: str) -> Iterator[str]:
    rows, sections = [], []
    for name, field in model.model_fields.items():
        inner = _model(field.annotation)
        if inner is not None and field.default_factory is not None:
            sections.append((f"{path}{name}", inner, field.description or _first_sentence(inner)))
        else:
            rows.append(f"| `{path}{name}` | {_default(field)} | {_kind(field.annotation)} | {_about(field)} |")
    if path:
        yield f"## `{path.rstrip('.')}`\n"
        yield f"{about}\n"
    if rows:
        yield from ("| setting | default | values | meaning |", "|---|---|---|---|", *rows, "")
    for inner_path, inner, inner_about in sections:
        yield from _section(f"{inner_path}.", inner, inner_about)


def _model(kind: Any) -> type[BaseModel] | None:
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _first_sentence(model: type[BaseModel]) -> str:
    return re.split(r"(?<=\.)\s", " ".join((model.__doc__ or "").split()))[0]


def _default(field: FieldInfo) -> str:
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "must be given"
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value in ("", (), [], {}):
        return "empty"
    if isinstance(value, BaseModel):
        return "see there"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{', '.join(map(str, value)) if isinstance(value, (tuple, list)) else text}`"


def _kind(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_kind(one) for one in inner if one is not NoneType)
    if origin in (tuple, list):
        return f"list of {_kind(inner[0])}"
    if origin is dict:
        return f"{_kind(inner[1])} by name"
    if model := _model(kind):
        return ", ".join(f"`{name}`" for name in model.model_fields)
    return _NAMES.get(kind, getattr(kind, "__name__", str(kind)))


def _about(field: FieldInfo) -> str:
    return " ".join((field.description or "").split()).replace("|", "\\|")


def main(arguments: list[str]) -> int:
    """Returns the exit status."""
    if arguments == ["generate"]:
        PAGE.write_text(page())
        return 0
    if arguments == ["check"]:
        if PAGE.is_file() and PAGE.read_text() == page():
            return 0
        sys.stderr.write(f"{PAGE.name} is not what the settings say: python -m tools.settings_page generate\n")
        return 1
    sys.stderr.write((__doc__ or "") + "\n")
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
