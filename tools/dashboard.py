"""Writes deploy/grafana/critiq.json from panels.yaml beside it, or checks that it is what they say.

.venv/bin/python -m tools.dashboard generate
.venv/bin/python -m tools.dashboard check
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

FOLDER = Path(__file__).parents[1] / "deploy" / "grafana"
PATH = FOLDER / "critiq.json"
PANELS = FOLDER / "panels.yaml"
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
CHOSEN = {
    "FAILED": 'code=~"INTERNAL|UNAVAILABLE|MODEL_NOT_LOADED|DEADLINE_EXCEEDED"',
    "HERE": 'job=~"$job", instance=~"$instance"',
    "MODEL": 'job=~"$job", instance=~"$instance", model=~"$model"',
    "RATE": "$__rate_interval",
}
WIDTH = 24
HEIGHTS = {"stat": 4}


@dataclass(frozen=True)
class Panel:
    """One panel; panels.yaml says what each field means."""

    title: str
    about: str
    queries: list[dict[str, str]]
    unit: str = "short"
    kind: Literal["stat", "timeseries", "heatmap", "state-timeline"] = "timeseries"
    width: int = 8
    steps: list[float] = field(default_factory=list)
    stacked: bool = False
    signed: bool = False
    occasional: bool = False


def rows() -> list[tuple[str, list[Panel]]]:
    """The dashboard's rows: title and panels."""
    return [
        (row["row"], [Panel(**panel) for panel in row["panels"]]) for row in yaml.safe_load(PANELS.read_text("utf-8"))
    ]


def query(text: str) -> str:
    """A panel's query with Grafana's variables for what stands for them."""
    return re.sub(r"\b(FAILED|HERE|MODEL|RATE)\b", lambda found: CHOSEN[found[0]], text)


def dashboard() -> dict[str, Any]:
    """The dashboard as Grafana (10 and later) imports it."""
    return {
        "uid": "critiq",
        "title": "critiq",
        "description": "Scores of AI-generated images: is it well, does it keep up, what are the scores.",
        "tags": ["critiq"],
        "schemaVersion": 39,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "30s",
        "timezone": "browser",
        "templating": {"list": list(_variables())},
        "annotations": {"list": [_alerts()]},
        "panels": list(_panels()),
    }


def _variables() -> Iterator[dict[str, Any]]:
    yield {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus", "refresh": 1}
    for name, metric, chosen in (
        ("job", "critiq_in_flight", ""),
        ("instance", "critiq_in_flight", '{job=~"$job"}'),
        ("model", "critiq_model_ready", '{job=~"$job", instance=~"$instance"}'),
    ):
        text = f"label_values({metric}{chosen}, {name})"
        yield {
            "name": name,
            "label": name.title(),
            "type": "query",
            "datasource": SOURCE,
            "definition": text,
            "query": {"query": text, "refId": f"variable-{name}"},
            "refresh": 2,
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"selected": True, "text": ["All"], "value": ["$__all"]},
        }


def _alerts() -> dict[str, Any]:
    return {
        "name": "Alerts",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Critiq.*", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}} {{model}}",
        "step": "60s",
    }


def _panels() -> Iterator[dict[str, Any]]:
    number, top = 0, 0
    for title, panels in rows():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": WIDTH, "h": 1},
            "panels": [],
        }
        left, top, tallest = 0, top + 1, 0
        for panel in panels:
            if left + panel.width > WIDTH:
                left, top, tallest = 0, top + tallest, 0
            height = HEIGHTS.get(panel.kind, 8)
            number += 1
            yield _panel(number, panel, {"x": left, "y": top, "w": panel.width, "h": height})
            left, tallest = left + panel.width, max(tallest, height)
        top += tallest


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit} if panel.signed else {"unit": panel.unit, "min": 0}
    if panel.occasional:
        defaults["noValue"] = "nothing so far"
    if panel.unit == "percentunit" and panel.kind == "timeseries":
        defaults["max"] = 1
    if panel.steps:
        colours = zip(("green", "yellow", "red"), (None, *panel.steps), strict=True)
        defaults["thresholds"] = {
            "mode": "absolute",
            "steps": [{"color": colour, "value": value} for colour, value in colours],
        }
        defaults["color"] = {"mode": "thresholds"}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        defaults["custom"] = {"fillOpacity": 20 if panel.stacked else 0, "stacking": stacking, "showPoints": "never"}
    targets = [
        {
            "refId": chr(ord("A") + at),
            "datasource": SOURCE,
            "expr": query(asked["expr"]),
            "legendFormat": asked.get("legend", "__auto"),
            "format": "heatmap" if panel.kind == "heatmap" else "time_series",
            "instant": panel.kind == "stat",
            "range": panel.kind != "stat",
        }
        for at, asked in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": targets,
    }


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"], "values": False}, "graphMode": "none"}
    if panel.kind == "heatmap":
        return {"calculate": False, "yAxis": {"unit": panel.unit, "min": "0", "max": "1"}, "color": {"scheme": "Blues"}}
    if panel.kind == "state-timeline":
        return {"mergeValues": True, "showValue": "auto", "legend": {"showLegend": False}}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["generate", "check"])
    text = json.dumps(dashboard(), indent=2) + "\n"
    if parser.parse_args().command == "generate":
        PATH.write_text(text)
    elif PATH.read_text() != text:
        sys.stderr.write(f"{PATH} is not what {PANELS.name} says; run python -m tools.dashboard generate\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
