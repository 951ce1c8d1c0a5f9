"""Asks a Prometheus every query of the Grafana dashboard and prints what it answers: what Grafana would show.

.venv/bin/python -m tools.dashboard_answers --prometheus http://localhost:9090
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from tools.dashboard import PATH

Series = tuple[str, float]


@dataclass(frozen=True)
class Asked:
    """One query of one panel, as Grafana would send it."""

    row: str
    panel: dict[str, Any]
    expression: str
    legend: str


def asked(rate: str, *, job: str = ".*", instance: str = ".*", model: str = ".*") -> Iterator[Asked]:
    """The queries of deploy/grafana/critiq.json with its variables filled in; ``rate`` is the span of rates."""
    row = ""
    for panel in json.loads(PATH.read_text("utf-8"))["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
            continue
        for target in panel["targets"]:
            text = target["expr"].replace("$__rate_interval", rate)
            for name, value in (("$job", job), ("$instance", instance), ("$model", model)):
                text = text.replace(name, value)
            yield Asked(row, panel, text, target["legendFormat"])


def named(legend: str, labels: dict[str, str]) -> str:
    """A series' name as Grafana writes it."""
    if legend == "__auto":
        return ", ".join(f"{name}={value}" for name, value in labels.items() if name != "__name__")
    for name in ("job", "instance", *labels):
        legend = legend.replace("{{%s}}" % name, labels.get(name, ""))  # noqa: UP031 - braces
    return " ".join(legend.split())


def shown(value: float, unit: str) -> str:
    """A value with its unit, short."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit in ("bytes", "Bps"):
        power = 0 if value < 1024 else min(3, int(math.log2(value) // 10))
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}" + ("/s" if unit == "Bps" else "")
    if unit == "s" and value < 1:
        return f"{1000 * value:.3g} ms"
    return f"{value:.4g}" + {"s": " s", "reqps": "/s"}.get(unit, "")


def answer(http: httpx.Client, question: Asked) -> list[Series]:
    """The present value of each series. Raises ``SystemExit`` if Prometheus refuses the query."""
    response = http.get("/api/v1/query", params={"query": question.expression})
    if response.status_code != 200:
        raise SystemExit(f"{question.panel['title']}: {response.json().get('error', response.text)}")
    found = response.json()["data"]["result"]
    return [(named(question.legend, entry["metric"]), float(entry["value"][1])) for entry in found]


def table(http: httpx.Client, rate: str, most: int) -> Iterator[str]:
    """Lines of Markdown: panel, query, answer."""
    row = ""
    for question in asked(rate):
        if question.row != row:
            row = question.row
            yield from ("", f"### {row}", "", "| panel | query | answer |", "|---|---|---|")
        unit = question.panel["fieldConfig"]["defaults"]["unit"]
        series = answer(http, question)
        values = [f"{name} {shown(value, unit)}".strip() for name, value in series[:most]]
        if len(series) > most:
            values.append(f"and {len(series) - most} more")
        query = question.expression.replace('job=~".*", instance=~".*"', "…").replace(', model=~".*"', "")
        query = query.replace("|", "\\|")
        yield f"| {question.panel['title']} | `{query}` | {'; '.join(values).replace('|', ' ') or 'nothing'} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prometheus", required=True, help="its address")
    parser.add_argument("--rate", default="1m", help="span of rates; at least four scrapes (default: 1m)")
    parser.add_argument("--most", type=int, default=4, help="series shown of each query (default: 4)")
    options = parser.parse_args()
    with httpx.Client(base_url=options.prometheus, timeout=30, trust_env=False) as http:
        for line in table(http, options.rate, options.most):
            sys.stdout.write(line + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
