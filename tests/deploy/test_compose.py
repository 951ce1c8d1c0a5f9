"""deploy/compose.yaml: what can be held without an engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from critiq_server.settings import Settings, load_settings
from tests.support.dockerfile import environment, stages
from tests.support.prometheus import SHIPPED

FOLDER = Path(__file__).parents[2] / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = ("critiq", "critiq-gpu")


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:\d+", service["user"]), "not root"
    assert service["mem_limit"]
    assert service["pids_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert ("healthcheck" in service) != (name in OURS), "ours brings its own"
    assert "latest" not in service["image"]
    assert re.search(r":[\w.-]+$", service["image"])


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_is_there_and_read_only_or_a_volume(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source, target, *mode = re.sub(r"\$\{MODELS:-([^}]*)\}", r"\1", mount).split(":")
        assert target.startswith("/")
        if source.startswith("./"):
            assert mode == ["ro"], mount
            assert source == "./models" or (FOLDER / source).exists(), mount
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("name", OURS)
def test_our_images_are_built_of_targets_that_exist(name: str) -> None:
    build = SERVICES[name]["build"]
    assert (FOLDER / build["context"] / build["dockerfile"]).is_file()
    assert build["target"] in stages()
    assert SERVICES[name]["image"] == f"critiq:{build['target']}"
    assert SERVICES[name]["user"] == stages()["base"].all("USER")[0]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What the server in the container makes of its environment and the mounted file."""
    for name, text in environment("cpu").items():
        if name.startswith("CRITIQ_"):
            monkeypatch.setenv(name, text)
    return load_settings(FOLDER / "critiq.yaml")


def test_the_server_accepts_its_settings_and_writes_only_where_it_may(settings: Settings) -> None:
    assert settings.server.host == "0.0.0.0"
    assert settings.models.directories == (Path("/models"),)
    assert settings.log.format == "json"
    written = settings.written_to()
    assert set(written) == {"jobs", "drift"}
    assert all(path.is_relative_to("/var/lib/critiq") for path in written.values())
    for name in OURS:
        targets = {mount.split(":")[1] for mount in SERVICES[name]["volumes"] if not mount.endswith(":ro")}
        assert targets == {"/var/lib/critiq"}
        assert SERVICES[name]["command"][-1] in {mount.split(":")[-2] for mount in SERVICES[name]["volumes"]}
        grace = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
        assert grace > settings.server.drain_seconds
    url = settings.features.redis.url
    assert url
    assert url.get_secret_value() == "redis://redis:6379/0"


def test_ports_and_names_fit_together(settings: Settings) -> None:
    inner = {int(port.rpartition(":")[2]) for name in OURS for port in SERVICES[name]["ports"]}
    assert inner == {settings.server.rest_port, settings.server.grpc_port}
    published = [port.rpartition(":")[0] for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(set(published)) == len(published)
    (job,) = [
        entry
        for entry in yaml.safe_load((SHIPPED / "prometheus.yaml").read_text())["scrape_configs"]
        if entry["job_name"] == "critiq"
    ]
    assert job["static_configs"] == [{"targets": [f"critiq:{settings.server.metrics_port}"]}]
    assert job["dns_sd_configs"] == [{"names": ["critiq-gpu"], "type": "A", "port": settings.server.metrics_port}]


def test_grafana_finds_prometheus_and_the_dashboard() -> None:
    grafana = SERVICES["grafana"]
    mounts = dict(mount.split(":")[:2] for mount in grafana["volumes"])
    provisioning = FOLDER / "grafana" / "provisioning"
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert source["url"] == "http://prometheus:9090"
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "critiq.yaml").read_text())["providers"]
    home = mounts["./grafana/critiq.json"]
    assert home == grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.startswith(provider["options"]["path"] + "/")
    assert json.loads((FOLDER / "grafana" / "critiq.json").read_text())["uid"] == "critiq"
    password = grafana["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    assert re.fullmatch(r"\$\{GRAFANA_PASSWORD:\?[^}]+\}", password), "no password that everybody knows"
