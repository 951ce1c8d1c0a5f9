"""The Grafana dashboard as a file; tests/deploy/test_prometheus.py asks its queries."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest

from tests.deploy.promql import Named, named
from tools.dashboard import PATH, dashboard
from tools.dashboard_answers import named as series_name
from tools.dashboard_answers import shown

DASHBOARD: dict[str, Any] = json.loads(PATH.read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]


def test_the_file_is_what_the_panels_say() -> None:
    assert dashboard() == DASHBOARD, "run python -m tools.dashboard generate"


def test_panels_have_room_names_and_words() -> None:
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        if panel["type"] != "row":
            assert panel["description"].endswith("."), panel["title"]
            assert panel["targets"]
    for one, other in combinations([panel["gridPos"] for panel in PANELS], 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below, (one, other)


def test_every_source_and_every_variable_is_one_of_the_dashboards() -> None:
    variables = {entry["name"] for entry in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "job", "instance", "model"}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)))
    assert used == {*variables, "__rate_interval", "__all"}
    for panel in PANELS:
        for entry in [panel, *panel.get("targets", [])] if panel["type"] != "row" else []:
            assert entry["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    legends = {
        (label, target["expr"])
        for panel in PANELS
        for target in panel.get("targets", [])
        for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
    }
    for label, expression in legends:
        grouped = re.search(r"\b(by|without) ?\(", expression)
        assert not grouped or re.search(rf"\bby \([^)]*\b{label}\b", expression), (label, expression)


@pytest.mark.parametrize(
    ("expression", "metrics", "labels"),
    [
        ('a:b:c{x="y z"} > 1e3 * 0.5', {"a:b:c"}, {"x"}),
        ('sum by (le, x) (rate(m_bucket{y!~"q{2}|r"}[5m:1s] offset 10m)) or vector(0)', {"m_bucket"}, {"le", "x", "y"}),
        ("one unless on (i) group_left (k) two == bool 1 and -three", {"one", "two", "three"}, {"i", "k"}),
        ("histogram_quantile(0.99, m) + NaN / Inf", {"m"}, set()),
    ],
)
def test_names_are_found_in_queries(expression: str, metrics: set[str], labels: set[str]) -> None:
    assert named(expression) == Named(frozenset(metrics), frozenset(labels))


def test_answers_are_written_as_grafana_writes_them() -> None:
    assert series_name("{{model}} {{stage}} p95", {"model": "m"}) == "m p95"
    assert series_name("{{instance}}", {}) == ""
    assert series_name("__auto", {"__name__": "m", "a": "b"}) == "a=b"
    values = [
        (0.0123, "s"),
        (12, "s"),
        (0.5, "percentunit"),
        (2**21, "bytes"),
        (0, "bytes"),
        (3, "reqps"),
        (9, "short"),
    ]
    assert [shown(*value) for value in values] == ["12.3 ms", "12 s", "50 %", "2 MiB", "0 B", "3/s", "9"]
    assert shown(float("nan"), "s") == "-"
    assert shown(172_800, "s") == "2 d"
