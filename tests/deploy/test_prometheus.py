"""A real server with everything on, real traffic, a real Prometheus with the shipped configuration: every query of the
dashboard and every rule names what there is, and is answered."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import httpx
import pytest
import pytest_asyncio
import yaml

from tests.deploy.promql import named
from tests.server.telemetry.exported import exported
from tests.support.prometheus import SHIPPED, Prometheus, prometheus
from tests.support.waiting import until_async
from tests.support.watched import Watched, watched
from tools.dashboard import PATH
from tools.dashboard_answers import answer, asked, table

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]

OF_PROMETHEUS = {
    "up": {"job", "instance"},
    "ALERTS": {"alertname", "alertstate", "severity"},
}
OF_SEVERAL_PROCESSES: dict[str, set[str]] = {
    "critiq_processes": {"job", "instance"},
    "critiq_process_restarts_total": {"job", "instance"},
}
"""What `critiq serve --workers` exports besides (tests/server/processes)."""
RATE = "6s"
"""The span of rates: a dozen scrapes here."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    async with watched(tmp_path_factory.mktemp("watched")) as running:
        traffic = asyncio.create_task(running.traffic(seconds=200))
        try:
            yield running
            if traffic.done():
                traffic.result()
        finally:
            traffic.cancel()
            with suppress(asyncio.CancelledError):
                await traffic


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scraped(server: Watched, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus") / "server"
    targets = [f"127.0.0.1:{server.app.metrics_port}"]
    async with prometheus(folder, targets, server.ca, server.metrics_key) as running:
        yield running


def expressions() -> Iterator[tuple[str, str]]:
    """Where it stands, and every expression of the dashboard and the rules."""
    for panel in json.loads(PATH.read_text())["panels"]:
        for target in panel.get("targets", []):
            yield f"panel {panel['title']}", target["expr"]
    for group in yaml.safe_load((SHIPPED / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield f"rule {rule.get('alert') or rule['record']}", rule["expr"]


async def test_a_real_prometheus_answers_every_panel(scraped: Prometheus, server: Watched) -> None:
    with httpx.Client(base_url=scraped.url, timeout=120, trust_env=False) as http:
        questions = [question for question in asked(RATE) if question.panel["title"] != "Processes"]
        unanswered = list(questions)

        async def all_answered() -> bool:
            unanswered[:] = [question for question in unanswered if not answer(http, question)]
            return not unanswered

        with suppress(AssertionError):
            await until_async(all_answered, seconds=40, pause=1)
        assert not unanswered, [(question.panel["title"], question.expression) for question in unanswered]
        lines = list(table(http, RATE, most=3))
    assert sum(line.endswith(" |") and "| panel |" not in line for line in lines) == len(list(asked(RATE)))


async def test_every_metric_and_label_in_queries_and_rules_is_one_that_a_server_exports(server: Watched) -> None:
    known: defaultdict[str, set[str]] = defaultdict(set, OF_PROMETHEUS | OF_SEVERAL_PROCESSES)
    for entry in exported(server.app.metrics.registry):
        suffixes = ("_bucket", "_sum", "_count") if entry.kind == "histogram" else ("",)
        for suffix in suffixes:
            known[entry.name + suffix] = {*entry.labels, "job", "instance", *(["le"] if suffix == "_bucket" else [])}
    for group in yaml.safe_load((SHIPPED / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                known[rule["record"]] |= named(rule["expr"]).labels
    for place, expression in expressions():
        found = named(expression)
        unknown = found.metrics - known.keys()
        assert not unknown, f"{place} names {unknown}, which no server exports"
        labels = set().union(*(known[metric] for metric in found.metrics))
        assert found.labels <= labels, f"{place} goes by {found.labels - labels}, which those metrics do not have"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("max(last_over_time(critiq_in_flight_limit[10s]))", 48),
        ("count(last_over_time(critiq_model_ready[10s]) == 1)", 4),
        ('count(last_over_time(critiq_degraded_total{dimension="wordiness"}[10s]) > 0)', 1),
        ("count(rate(critiq_items_total[10s]) > 0) > bool 0", 1),
    ],
)
async def test_its_numbers_are_the_servers(scraped: Prometheus, expression: str, expected: float) -> None:
    """On a busy machine a scrape may come too late: what was there within the last seconds counts."""
    found: list[float] = []

    async def as_expected() -> bool:
        found[:] = [float(entry["value"][1]) for entry in await scraped.query(expression)]
        return found == [expected]

    with suppress(AssertionError):
        await until_async(as_expected)
    assert found == [expected]


async def test_every_rule_is_evaluated_and_trouble_raises_its_alerts(scraped: Prometheus) -> None:
    wanted = {"CritiqStoreDamaged", "CritiqModelLoadFailed"}
    firing: set[str] = set()

    async def fire() -> bool:
        alerts = (await scraped.api("alerts"))["alerts"]
        firing.update(entry["labels"]["alertname"] for entry in alerts if entry["state"] == "firing")
        return wanted <= firing

    with suppress(AssertionError):
        await until_async(fire)
    assert wanted <= firing
    assert not firing & {"CritiqTargetDown", "CritiqNoTargets", "CritiqNoModelReady"}
    rules = {rule["name"]: rule for group in (await scraped.api("rules"))["groups"] for rule in group["rules"]}
    assert {name for name, rule in rules.items() if rule["health"] != "ok" or rule.get("lastError")} == set()
    recorded = {name for name, rule in rules.items() if rule["type"] == "recording"}

    async def all_recorded() -> bool:
        recorded.difference_update([name for name in recorded if await scraped.query(f"last_over_time({name}[10s])")])
        return not recorded

    with suppress(AssertionError):
        await until_async(all_recorded)
    assert not recorded, "these record nothing"
