"""The alert rules, with Prometheus's own tool; tests/deploy/test_prometheus.py runs them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.prometheus import SHIPPED, needs

GROUPS: list[dict[str, Any]] = yaml.safe_load((SHIPPED / "alerts.yaml").read_text())["groups"]
ALERTS = [rule for group in GROUPS for rule in group["rules"] if "alert" in rule]
TESTS: dict[str, Any] = yaml.safe_load((SHIPPED / "alerts_test.yaml").read_text())


@pytest.mark.parametrize(
    "arguments", ["check config prometheus.yaml", "check rules alerts.yaml", "test rules alerts_test.yaml"]
)
def test_promtool_passes(arguments: str) -> None:
    command = [needs("promtool"), *arguments.split()]
    done = subprocess.run(command, cwd=SHIPPED, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout


def test_promtool_would_find_a_mistake(tmp_path: Path) -> None:
    text = (SHIPPED / "alerts.yaml").read_text()
    (tmp_path / "alerts.yaml").write_text(
        text.replace("critiq:queue_seconds:p95_5m > 1", "critiq:queue_seconds:p95_5m > 2")
    )
    slow = [test for test in TESTS["tests"] if "slow calls" in test["name"]]
    (tmp_path / "alerts_test.yaml").write_text(yaml.safe_dump({**TESTS, "tests": slow}))
    command = [needs("promtool"), "test", "rules", "alerts_test.yaml"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "CritiqQueueTimeHigh" in done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_how_bad_it_is_and_what_to_do_and_was_seen_to_fire(alert: dict[str, Any]) -> None:
    name = alert["alert"]
    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert alert["annotations"]["summary"].endswith(".")
    words = re.findall("[A-Z][a-z]*", name.removeprefix("Critiq"))
    assert alert["annotations"]["runbook_url"] == "docs/operations.md#alert-" + "-".join(words).lower()
    cases = [case for test in TESTS["tests"] for case in test.get("alert_rule_test", []) if case["alertname"] == name]
    assert any(case["exp_alerts"] for case in cases), "no test lets it fire"


def test_names_are_given_once() -> None:
    names = [rule.get("alert") or rule["record"] for group in GROUPS for rule in group["rules"]]
    assert len(set(names)) == len(names)


def test_every_alert_has_its_runbook() -> None:
    page = (SHIPPED.parents[1] / "docs" / "operations.md").read_text()
    for alert in ALERTS:
        anchor = alert["annotations"]["runbook_url"].partition("#")[2]
        assert f"### {anchor}\n" in page, alert["alert"]
