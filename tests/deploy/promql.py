"""What a PromQL expression names: metrics, and labels it goes by. No parser: Prometheus itself checks the syntax."""

from __future__ import annotations

import re
from dataclasses import dataclass

_TEXT = re.compile(r'"(?:\\.|[^"\\])*"')
_MATCHER = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_WORDS = frozenset(["and", "or", "unless", "bool", "offset", "group_left", "group_right", "inf", "nan"])


@dataclass(frozen=True)
class Named:
    metrics: frozenset[str]
    labels: frozenset[str]


def named(expression: str) -> Named:
    """Metrics and labels of an expression (Grafana's variables may be in it).

    Functions are names before an opening parenthesis; what is left besides words of the language are metrics.
    """
    text = _TEXT.sub('""', expression)
    labels: set[str] = set()
    for braces in re.findall(r"\{([^}]*)\}", text):
        labels.update(_MATCHER.findall(braces))
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", text)
    for _, names in _GROUPING.findall(text):
        labels.update(name.strip() for name in names.split(",") if name.strip())
    text = _GROUPING.sub("", text)
    metrics = set()
    for found in _NAME.finditer(text):
        name = found[0]
        if re.match(r"[0-9.]", text[max(0, found.start() - 1)]) or text[found.end() :].lstrip().startswith("("):
            continue  # the unit of a duration or an exponent; a function
        if name.lower() not in _WORDS and not re.fullmatch(r"(sum|min|max|avg|count|topk|quantile)", name):
            metrics.add(name)
    return Named(frozenset(metrics), frozenset(labels))
