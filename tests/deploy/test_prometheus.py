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
RATE = "6s"
"""The span of rates: a dozen scrapes here."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    async with watched(tmp_path_factory.mktemp("watched")) as running:
        traffic = asyncio.create_task(_traffic(running))
        try:
            yield running
            if traffic.done():
                traffic.result()
        finally:
            traffic.cancel()
            with suppress(asyncio.CancelledError):
                await traffic


async def _traffic(server: Watched) -> None:
    for turn in range(600):
        await server.round()
        if turn % 4 == 0:
            await server.trouble()
            await server.overload()
        await asyncio.sleep(0.2)


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
    with httpx.Client(base_url=scraped.url, timeout=20, trust_env=False) as http:
        questions = list(asked(RATE))
        unanswered = list(questions)

        async def all_answered() -> bool:
            unanswered[:] = [question for question in unanswered if not answer(http, question)]
            return not unanswered

        with suppress(AssertionError):
            await until_async(all_answered, seconds=40, pause=1)
        assert not unanswered, [(question.panel["title"], question.expression) for question in unanswered]
        lines = list(table(http, RATE, most=3))
    assert len([line for line in lines if line.startswith("| ") and "| panel |" not in line]) == len(questions)
    assert any(line.startswith("| Models |") and "plain 1 1" in line for line in lines)


async def test_every_metric_and_label_in_queries_and_rules_is_one_that_a_server_exports(server: Watched) -> None:
    known: defaultdict[str, set[str]] = defaultdict(set, OF_PROMETHEUS)
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


async def test_its_numbers_are_the_servers(scraped: Prometheus, server: Watched) -> None:
    async def scraped_twice() -> bool:
        return bool(await scraped.query("rate(critiq_items_total[4s]) > 0"))

    await until_async(scraped_twice)
    (found,) = await scraped.query("max(critiq_in_flight_limit)")
    assert float(found["value"][1]) == server.app.settings.limits.in_flight
    degraded = {entry["metric"]["dimension"] for entry in await scraped.query("critiq_degraded_total > 0")}
    assert degraded == {"wordiness"}
    (ready,) = await scraped.query("count(critiq_model_ready == 1)")
    assert float(ready["value"][1]) == 3


async def test_every_rule_is_evaluated_and_a_damaged_store_raises_its_alert(scraped: Prometheus) -> None:
    async def evaluated() -> bool:
        groups = (await scraped.api("rules"))["groups"]
        return all(rule["health"] != "unknown" for group in groups for rule in group["rules"])

    await until_async(evaluated)

    async def fires() -> bool:
        query = 'ALERTS{alertname="CritiqStoreDamaged", alertstate="firing", tier="network"}'
        return bool(await scraped.query(query))

    await until_async(fires)
    rules = {rule["name"]: rule for group in (await scraped.api("rules"))["groups"] for rule in group["rules"]}
    assert {name for name, rule in rules.items() if rule["health"] != "ok" or rule.get("lastError")} == set()
    for name, rule in rules.items():
        if rule["type"] == "recording" and not name.startswith("critiq:errors:ratio"):
            assert await scraped.query(name), f"{name} records nothing"
    targets = (await scraped.api("targets"))["activeTargets"]
    assert [target["health"] for target in targets] == ["up"]
    firing = {
        entry["labels"]["alertname"] for entry in (await scraped.api("alerts"))["alerts"] if entry["state"] == "firing"
    }
    assert firing >= {"CritiqStoreDamaged", "CritiqModelLoadFailed"}
    assert not firing & {"CritiqTargetDown", "CritiqNoTargets", "CritiqNoModelReady"}
