"""Asks a Prometheus every query of the Grafana dashboard and prints what it answers: what Grafana would show.

.venv/bin/python -m tools.dashboard_answers --prometheus http://localhost:9090
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
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
    return " ".join(re.sub(r"\{\{(\w+)\}\}", lambda name: labels.get(name[1], ""), legend).split())


def shown(value: float, unit: str) -> str:
    """A value with its unit, short."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit in ("bytes", "Bps"):
        power = 0 if value < 1024 else min(3, int(math.log2(value) // 10))
        return f"{value / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}" + ("/s" if unit == "Bps" else "")
    if unit == "s" and not 1 <= value < 86_400:
        return f"{1000 * value:.3g} ms" if value < 1 else f"{value / 86_400:.0f} d"
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


async def demo(seconds: float, report: Callable[[httpx.Client], None]) -> None:
    """Calls ``report`` with a Prometheus that has watched a server's traffic for so long."""
    from critiq_server.settings import LogSettings
    from critiq_server.telemetry.logs import configure
    from tests.support.prometheus import prometheus
    from tests.support.watched import watched

    configure(LogSettings(level="error"))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with watched(folder / "server") as server:
            targets = [f"127.0.0.1:{server.app.metrics_port}"]
            async with prometheus(folder / "prometheus", targets, server.ca, server.metrics_key, "1s") as running:
                await server.traffic(seconds)
                with httpx.Client(base_url=running.url, timeout=30, trust_env=False) as http:
                    await asyncio.to_thread(report, http)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prometheus", help="its address")
    source.add_argument("--demo", type=float, metavar="SECONDS")
    parser.add_argument("--rate", default="", help="span of rates; at least four scrapes (default: 1m, demo: 20s)")
    parser.add_argument("--most", type=int, default=3, help="series shown of each query (default: 3)")
    parser.add_argument("--pictures", type=Path, metavar="DIRECTORY")
    parser.add_argument("--minutes", type=float, default=15, help="span of the pictures (default: 15, demo: all)")
    options = parser.parse_args()
    rate = options.rate or ("20s" if options.demo else "1m")

    def report(http: httpx.Client) -> None:
        for line in table(http, rate, options.most):
            sys.stdout.write(line + "\n")
        if options.pictures:
            from tools.dashboard_pictures import draw

            for path in draw(http, rate, options.demo or 60 * options.minutes, options.pictures):
                sys.stderr.write(f"{path}\n")

    if options.demo:
        asyncio.run(demo(options.demo, report))
    else:
        with httpx.Client(base_url=options.prometheus, timeout=30, trust_env=False) as http:
            report(http)
    return 0


if __name__ == "__main__":
    sys.exit(main())
