"""What the autoscalers ask Prometheus for: metrics that exist, and queries that say what they should."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from critiq_server.telemetry.metrics import Metrics
from tests.deploy import charts
from tests.deploy.charts import only, outcomes
from tests.deploy.kubernetes import read
from tests.deploy.promql import named

charts.need_helm()

NAMESPACE, SERVICE = "scoring", "critiq-headless"


@pytest.fixture(scope="module")
def queries() -> dict[str, str]:
    """By name: KEDA's for all pods, the adapter's for each."""
    values = charts.values_files()
    (keda, gpu) = (read(outcome["text"]) for outcome in outcomes([values["keda"], values["gpu"]]))
    found = {
        f"keda {trigger['name']}": trigger["metadata"]["query"]
        for trigger in only(keda, "ScaledObject")["spec"]["triggers"]
        if trigger["type"] == "prometheus"
    }
    asked = {
        metric["pods"]["metric"]["name"]
        for metric in only(gpu, "HorizontalPodAutoscaler")["spec"]["metrics"]
        if metric["type"] == "Pods"
    }
    rules = yaml.safe_load((charts.ROOT / "deploy/prometheus/adapter.yaml").read_text())["rules"]["custom"]
    assert {rule["name"]["as"] for rule in rules} == asked
    for rule in rules:
        query = rule["metricsQuery"].replace("<<.LabelMatchers>>", f'namespace="{NAMESPACE}",pod=~"critiq-a|critiq-b"')
        found[f"adapter {rule['name']['as']}"] = query.replace("<<.GroupBy>>", "pod")
    return found


def test_queries_name_metrics_that_the_server_exports(queries: dict[str, str]) -> None:
    exported = {sample.name for family in Metrics().registry.collect() for sample in family.samples}
    exported |= {f"{family.name}_{end}" for family in Metrics().registry.collect() for end in ("sum", "count")}
    for name, query in queries.items():
        assert named(query).metrics <= exported, name


def series(name: str, pod: str, per_minute: float, service: str = SERVICE) -> dict[str, Any]:
    return {
        "series": f'{name}{{namespace="{NAMESPACE}",service="{service}",pod="{pod}",model="m",stage="s"}}',
        "values": f"0+{per_minute / 4}x40",
    }


def expect(query: str, values: dict[str, float]) -> dict[str, Any]:
    samples = [{"labels": f'{{pod="{pod}"}}' if pod else "{}", "value": value} for pod, value in values.items()]
    return {"expr": query, "eval_time": "5m", "exp_samples": samples}


def test_queries_say_how_long_items_wait(queries: dict[str, str], tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("needs promtool (Debian: prometheus)")
    # critiq-a: 600 items a minute that wait 0.2 s each, 30 s of computing; critiq-b: none at all.
    busy = [
        series("critiq_queue_seconds_sum", "critiq-a", 120),
        series("critiq_queue_seconds_count", "critiq-a", 600),
        series("critiq_compute_seconds_sum", "critiq-a", 30),
        series("critiq_queue_seconds_sum", "critiq-b", 0),
        series("critiq_queue_seconds_count", "critiq-b", 0),
        series("critiq_compute_seconds_sum", "critiq-b", 0),
        # Another release in the same namespace, whose name begins like ours.
        series("critiq_queue_seconds_sum", "critiq-jobs-0", 6000, "critiq-jobs-headless"),
        series("critiq_queue_seconds_count", "critiq-jobs-0", 60, "critiq-jobs-headless"),
        series("critiq_compute_seconds_sum", "critiq-jobs-0", 60, "critiq-jobs-headless"),
    ]
    tests = {
        "rule_files": [],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": busy,
                "promql_expr_test": [
                    expect(queries["keda queue"], {"": 0.2}),
                    expect(queries["keda busy"], {"": 0.5}),
                    expect(queries["adapter critiq_queue_seconds_mean"], {"critiq-a": 0.2, "critiq-b": 0.0}),
                    expect(queries["adapter critiq_compute_busy_share"], {"critiq-a": 0.5, "critiq-b": 0.0}),
                ],
            }
        ],
    }
    (tmp_path / "tests.yaml").write_text(json.dumps(tests))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "tests.yaml")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
