"""YAML in which nothing is said twice."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import yaml


def strict_load(text: str | bytes) -> Any:
    """The value in ``text``.

    Raises:
        yaml.YAMLError: this is no YAML, or a key is given twice, of which YAML would silently keep the last.
        ValueError: a date that there is not, or text that is not UTF-8.
    """
    return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key.value[:60]!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else key)
        return super().construct_mapping(node, deep)
