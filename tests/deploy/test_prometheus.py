"""A real server with everything on, real traffic, a real Prometheus with the shipped configuration: every query of the
dashboard and every rule names what there is, and is answered."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import httpx
import pytest
import pytest_asyncio
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.promql import named
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
ELSEWHERE = {
    "process_virtual_memory_bytes",
    "critiq_drift_psi",
    "critiq_drift_wasserstein",
    "critiq_drift_shift",
    "critiq_drift_window_count",
}
"""Exported, but neither on the dashboard nor in a rule: /v1/drift and its report show those of drift."""
ABSENT: frozenset[str] = frozenset()
"""Panels of what this machine has not."""


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
            await server.overload()
        await asyncio.sleep(0.2)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scraped(server: Watched, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Prometheus]:
    folder = tmp_path_factory.mktemp("prometheus") / "server"
    async with prometheus(folder, [f"127.0.0.1:{server.app.metrics_port}"]) as running:
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
        questions = [question for question in asked(RATE) if question.panel["title"] not in ABSENT]
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


async def exposition(server: Watched) -> str:
    async with httpx.AsyncClient(trust_env=False) as http:
        return (await http.get(f"http://127.0.0.1:{server.app.metrics_port}/metrics")).text


async def test_every_metric_and_label_in_queries_and_rules_is_one_that_a_server_exports(server: Watched) -> None:
    known: defaultdict[str, set[str]] = defaultdict(set, OF_PROMETHEUS)
    for group in yaml.safe_load((SHIPPED / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            if "record" in rule:
                known[rule["record"]] |= named(rule["expr"]).labels
    used = {place: named(expression) for place, expression in expressions()}
    unknown: dict[str, frozenset[str]] = {}

    async def all_known() -> bool:
        for family in text_string_to_metric_families(await exposition(server)):
            for sample in family.samples:
                known[sample.name] |= {*sample.labels, "job", "instance"}
        found = {place: entry.metrics - known.keys() for place, entry in used.items()}
        unknown.clear()
        unknown.update({place: names for place, names in found.items() if names})
        return not unknown

    with suppress(AssertionError):
        await until_async(all_known, seconds=20, pause=0.5)
    assert not unknown, "no server exports these"
    for place, entry in used.items():
        labels = set().union(*(known[metric] for metric in entry.metrics))
        assert entry.labels <= labels, f"{place} goes by {entry.labels - labels}, which those metrics do not have"


async def test_whatever_is_exported_is_shown_or_watched(server: Watched) -> None:
    used = frozenset().union(*(named(expression).metrics for _, expression in expressions()))
    shown = {re.sub("_(bucket|sum|count|total)$", "", name) for name in used}
    exported = {family.name for family in text_string_to_metric_families(await exposition(server))}
    assert {name for name in exported - shown if not name.endswith("_created")} == ELSEWHERE


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
    assert not firing & {"CritiqTargetDown", "CritiqNoTargets", "CritiqNoModelReady", "CritiqFault"}
