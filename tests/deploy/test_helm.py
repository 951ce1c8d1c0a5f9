"""The chart's objects: valid, consistent with one another, as the golden renders have them."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest
import yaml

from tests.deploy import charts
from tests.deploy.charts import only, outcomes, settings_of
from tests.deploy.kubernetes import OLDEST, Object, pod_specs, read, validate
from tools.chart import GOLDEN, without_copies

charts.need_helm()

NAMES = list(charts.values_files())
RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"settings": {"jobs": {"path": "/var/lib/critiq/jobs.db"}}}, "persistence.enabled"),
    ({"settings": {"jobs": {"path": "/var/lib/critiq/j"}}, "persistence": {"enabled": True}}, "replicaCount: 1"),
    ({"settings": {"server": {"host": "127.0.0.1"}}}, "0.0.0.0"),
    ({"terminationGracePeriodSeconds": 20}, "what was accepted would be cut off"),
    ({"autoscaling": {"kind": "hpa", "minReplicas": 11}}, "autoscaling.minReplicas (11)"),
    ({"autoscaling": {"kind": "keda"}}, "autoscaling.keda.serverAddress"),
    ({"autoscaling": {"kind": "hpa"}, "resources": {"requests": {"cpu": None}}}, "autoscaling.cpuPercent"),
    ({"models": {"source": "claim"}}, "models.claim.name"),
    ({"models": {"source": "copy"}}, "models.copy.image"),
    ({"models": {"source": "image"}}, "models.image.reference"),
    ({"models": {"source": "volume"}}, "models.volume"),
    (
        {"auth": {"existingSecret": "keys"}, "metrics": {"serviceMonitor": {"enabled": True}}},
        "metrics.serviceMonitor.keySecret.name",
    ),
    ({"updateStrategy": {"maxSurge": 0}}, "updateStrategy"),
    ({"tls": {"clientCaSecret": "ca"}}, "tls.existingSecret"),
    ({"tls": {"existingSecret": "a", "requireClientCertificate": True}}, "tls.clientSecret"),
    ({"settings": {"security": {"tls": {"certificate": "/a", "key": "/b"}}}}, "tls.existingSecret"),
    ({"ingress": {"grpc": {"enabled": True}}}, "ingress.grpc.hosts"),
    ({"gateway": {"rest": {"enabled": True}}}, "gateway.rest.parentRefs"),
    ({"replicas": 3}, "replicas"),
    ({"settings": {"server": {"rest_prot": 80}}}, "rest_prot"),
    ({"settings": {"features": {"redis": {"url": "redis://user:secret@host"}}}}, "settings/features/redis/url"),
]
LOGS = {"settings": {"log": {"level": "debug"}}}
SERVICE = {"replicaCount": 7, "service": {"type": "NodePort"}}
TENSORRT = {"gpu": {"enabled": True, "target": "tensorrt"}}
NUMBERS = {
    "imagePullSecrets": [{"name": "1"}],
    "auth": {"existingSecret": "2"},
    "tls": {"existingSecret": "3", "clientCaSecret": "4", "requireClientCertificate": True, "clientSecret": "5"},
    "redis": {"existingSecret": "6", "key": "7"},
    "models": {"source": "claim", "claim": {"name": "8", "subPath": "9"}},
    "persistence": {"enabled": True, "storageClass": "10"},
    "metrics": {"serviceMonitor": {"enabled": True, "keySecret": {"name": "11", "key": "12"}}},
    "tests": {"keySecret": {"name": "13", "key": "14"}},
    "priorityClassName": "15",
    "runtimeClassName": "16",
    "nodeSelector": {"disk": "17"},
    "image": {"tag": "20261121"},
}
AUTO = {"gpu": {"enabled": True}, "settings": {"runtime": {"provider": "auto"}}}


@pytest.fixture(scope="module")
def said() -> dict[str, dict[str, str]]:
    """What Helm says to all values that this module asks it about, by their ``repr``: one process for all."""
    asked = [
        *charts.values_files().values(),
        LOGS,
        SERVICE,
        NUMBERS,
        TENSORRT,
        AUTO,
        *(values for values, _ in REFUSED),
    ]
    return {repr(values): outcome for values, outcome in zip(asked, outcomes(asked), strict=True)}


@pytest.fixture(scope="module")
def renders(said: dict[str, dict[str, str]]) -> dict[str, list[Object]]:
    """The objects that each file of ``ci/`` gives, by its name."""
    return {name: read(said[repr(values)]["text"]) for name, values in charts.values_files().items()}


@pytest.fixture(params=NAMES)
def documents(renders: dict[str, list[Object]], request: pytest.FixtureRequest) -> list[Object]:
    return renders[request.param]


@pytest.mark.parametrize("name", NAMES)
def test_renders_are_those_that_were_looked_at(said: dict[str, dict[str, str]], name: str) -> None:
    text = without_copies(said[repr(charts.values_files()[name])]["text"])
    assert text == (GOLDEN / f"{name}.yaml").read_text(), "if it is meant so: python -m tools.chart generate"
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(NAMES)


def test_helms_own_linter_finds_nothing() -> None:
    code = (
        "import json, sys, yaml, helm_python as helm\n"
        "for file in sys.argv[2:]:\n"
        "    found = helm.lint(sys.argv[1], yaml.safe_load(open(file)) or {}, strict=True, namespace='scoring')\n"
        "    bad = [one for one in found['messages'] if one['severity'] > 1]\n"
        "    assert not bad and not found['errors'], (file, found)\n"
    )
    charts.run_code(code, str(charts.CHART), *map(str, charts.FILES))


def test_every_object_is_valid(documents: list[Object]) -> None:
    for document in documents:
        validate(document)


@pytest.mark.parametrize("name", ["everything", "jobs", "mutual-tls"])
def test_the_oldest_kubernetes_takes_them_too(renders: dict[str, list[Object]], name: str) -> None:
    """Not volumes of images, which came later; the page says so."""
    for document in renders[name]:
        validate(document, OLDEST)


def test_names_that_look_like_numbers_stay_names(said: dict[str, dict[str, str]]) -> None:
    for document in read(said[repr(NUMBERS)]["text"]):
        validate(document)


def test_names_labels_and_namespaces_are_everywhere(documents: list[Object]) -> None:
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(set(names)) == len(names)
    for document in documents:
        metadata = document["metadata"]
        assert metadata["namespace"] == "scoring"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "Helm"
        assert metadata["labels"]["helm.sh/chart"] == "critiq-0.1.0"


def test_selectors_find_the_pods(documents: list[Object]) -> None:
    workload = only(documents, "Deployment", "StatefulSet")
    labels = workload["spec"]["template"]["metadata"]["labels"]
    test_labels = [one["metadata"]["labels"] for one in documents if one["kind"] == "Pod"]
    selectors = [workload["spec"]["selector"]["matchLabels"]]
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "Service":
            selectors.append(spec["selector"])
        elif document["kind"] == "PodDisruptionBudget":
            selectors.append(spec["selector"]["matchLabels"])
        elif document["kind"] == "NetworkPolicy":
            selectors.append(spec["podSelector"]["matchLabels"])
        elif document["kind"] in ("HorizontalPodAutoscaler", "ScaledObject"):
            target = spec["scaleTargetRef"]
            assert (target["kind"], target["name"]) == (workload["kind"], workload["metadata"]["name"])
            assert "replicas" not in workload["spec"]
        elif document["kind"] == "ServiceMonitor":
            found = [
                service["metadata"]["name"]
                for service in documents
                if service["kind"] == "Service"
                and spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
            ]
            assert found == [f"{workload['metadata']['name']}-headless"]
    for selector in selectors:
        assert len(selector) >= 3
        assert selector.items() <= labels.items()
        assert not [one for one in test_labels if selector.items() <= one.items()], "the test's pod would get calls"


def test_ports_lead_somewhere(documents: list[Object]) -> None:
    container = only(documents, "Deployment", "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    services = {one["metadata"]["name"]: one["spec"]["ports"] for one in documents if one["kind"] == "Service"}
    for service in services.values():
        assert {port["targetPort"] for port in service} <= set(ports)
    (headless,) = [name for name in services if name.endswith("-headless")]
    assert {port["name"]: port["port"] for port in services[headless]} == ports
    for document in documents:
        spec = document.get("spec", {})
        if document["kind"] == "NetworkPolicy":
            named = {port["port"] for rule in spec["ingress"] for port in rule["ports"]}
            assert named == set(ports)
        elif document["kind"] == "ServiceMonitor":
            assert spec["endpoints"][0]["port"] in ports
        elif document["kind"] == "Ingress":
            for rule in spec["rules"]:
                backend = rule["http"]["paths"][0]["backend"]["service"]
                assert backend["port"]["name"] in {port["name"] for port in services[backend["name"]]}
        elif document["kind"] in ("HTTPRoute", "GRPCRoute"):
            (backend,) = spec["rules"][0]["backendRefs"]
            face = "rest" if document["kind"] == "HTTPRoute" else "grpc"
            assert backend["port"] in [port["port"] for port in services[backend["name"]] if port["name"] == face]
    for probe in (container[name] for name in ("startupProbe", "readinessProbe", "livenessProbe")):
        if "grpc" in probe:
            assert probe["grpc"]["port"] == ports["grpc"]
        elif "httpGet" in probe:
            assert probe["httpGet"]["port"] == "rest"
        else:
            assert f'"localhost", {ports["rest"]},' in probe["exec"]["command"][-1]


def test_what_is_mounted_is_there(documents: list[Object]) -> None:
    workload = only(documents, "Deployment", "StatefulSet")["spec"]
    claims = {claim["metadata"]["name"] for claim in workload.get("volumeClaimTemplates", [])}
    pod = workload["template"]["spec"]
    volumes = {volume["name"] for volume in pod["volumes"]} | claims
    mounted = {mount["name"] for one in containers(pod) for mount in one.get("volumeMounts", [])}
    assert mounted == volumes
    places = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
    assert len(set(places)) == len(places)
    config = {one["metadata"]["name"] for one in documents if one["kind"] == "ConfigMap"}
    (settings,) = [volume for volume in pod["volumes"] if volume["name"] == "config"]
    assert settings["configMap"]["name"] in config
    (account,) = [one["metadata"]["name"] for one in documents if one["kind"] == "ServiceAccount"]
    assert pod["serviceAccountName"] == account


def containers(pod: Object) -> list[Object]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def test_pods_are_held_to_the_restricted_standard(documents: list[Object]) -> None:
    for pod in pod_specs(documents):
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        for container in containers(pod):
            assert container["securityContext"] == RESTRICTED, container["name"]
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]


def test_the_images_variables_do_not_win_over_the_settings(documents: list[Object]) -> None:
    """Its ``CRITIQ_...`` would: variables win over files, so the chart gives each of them itself."""
    dockerfile = (charts.ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    of_image = set(re.findall(r"\bCRITIQ_[A-Z_]+__[A-Z_]+(?==)", dockerfile))
    assert of_image
    container = only(documents, "Deployment", "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    given = {entry["name"]: entry.get("value", "") for entry in container["env"]}
    assert of_image <= set(given)
    settings = yaml.safe_load(settings_of(documents))
    for name in of_image:
        section, setting = name.removeprefix("CRITIQ_").lower().split("__")
        assert yaml.safe_load(given[name]) == settings.get(section, {}).get(setting, [])


def test_stopping_is_given_its_time(documents: list[Object]) -> None:
    pod = only(documents, "Deployment", "StatefulSet")["spec"]["template"]["spec"]
    drain = 12.5 if "drain_seconds: 12.5" in settings_of(documents) else 30
    before = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= before + drain + 10


def test_liveness_asks_nothing_of_models(documents: list[Object]) -> None:
    container = only(documents, "Deployment", "StatefulSet")["spec"]["template"]["spec"]["containers"][0]
    live, ready = str(container["livenessProbe"]), str(container["readinessProbe"])
    assert ("'service': 'live'" in live) ^ ("/healthz" in live)
    assert ("'service'" not in ready and "grpc" in ready) ^ ("/readyz" in ready)
    assert container["startupProbe"]["failureThreshold"] * container["startupProbe"]["periodSeconds"] == 600


def test_no_secret_is_in_a_config_map(documents: list[Object]) -> None:
    assert not [document for document in documents if document["kind"] == "Secret"]
    assert "whsec_" not in settings_of(documents)


def test_a_change_of_settings_replaces_the_pods_and_nothing_else_does(said: dict[str, dict[str, str]]) -> None:
    plain, same, other = (
        only(read(said[repr(values)]["text"]), "Deployment")["spec"]["template"] for values in ({}, SERVICE, LOGS)
    )
    assert plain == same
    assert plain["metadata"]["annotations"] != other["metadata"]["annotations"]
    assert plain["spec"] == other["spec"]


def test_gpus_are_asked_for_and_must_work(renders: dict[str, list[Object]], said: dict[str, dict[str, str]]) -> None:
    pod = only(renders["gpu"], "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    assert container["image"] == "critiq:0.1.0-gpu"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod["tolerations"]
    assert "provider: cuda" in settings_of(renders["gpu"])
    engines = said[repr(TENSORRT)]["text"]
    assert "image: critiq:0.1.0-tensorrt" in engines
    assert "provider: engine" in engines
    assert "provider: auto" in said[repr(AUTO)]["text"]


def test_jobs_get_a_volume_of_their_own(renders: dict[str, list[Object]]) -> None:
    workload = only(renders["jobs"], "StatefulSet")
    assert workload["spec"]["serviceName"] == "critiq-headless"
    assert workload["spec"]["replicas"] == 1


@pytest.mark.parametrize(("values", "says"), REFUSED)
def test_values_that_cannot_work_are_refused_by_name(
    said: dict[str, dict[str, str]], values: dict[str, Any], says: str
) -> None:
    assert says in said[repr(values)]["error"]


def test_alerts_and_the_dashboard_are_those_of_the_monitoring(renders: dict[str, list[Object]]) -> None:
    rules = only(renders["everything"], "PrometheusRule")["spec"]
    assert rules == yaml.safe_load((charts.ROOT / "deploy/prometheus/alerts.yaml").read_text())
    (dashboard,) = [one["data"] for one in renders["everything"] if one["metadata"]["name"].endswith("-dashboard")]
    assert dashboard["critiq.json"].rstrip() == (charts.ROOT / "deploy/grafana/critiq.json").read_text().rstrip()


def test_notes_warn_of_what_is_open(said: dict[str, dict[str, str]]) -> None:
    values = charts.values_files()
    notes = {name: said[repr(values[name])]["notes"] for name in NAMES}
    assert "no keys are asked for" in notes["default"]
    assert "no keys are asked for" not in notes["hardened"]
    assert "keys travel in the clear" in notes["hardened"]
    assert "https://critiq.scoring.svc:8000" in notes["tls"]
    assert "networkPolicy.clients must let the ingress controller" in notes["everything"]
    assert all("helm -n scoring test critiq" in text for text in notes.values())


def test_the_chart_and_the_image_belong_to_this_version() -> None:
    chart = yaml.safe_load((charts.CHART / "Chart.yaml").read_text())
    project = tomllib.loads((charts.ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == project["version"]
    dockerfile = (charts.ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    assert {"cpu", "gpu", "tensorrt"} <= set(re.findall(r"^FROM .* AS (\S+)$", dockerfile, re.MULTILINE))
    assert "USER 10001:10001" in dockerfile
    server = yaml.safe_load((charts.CHART / "values.yaml").read_text())["settings"]["server"]
    assert f"EXPOSE {server['rest_port']} {server['grpc_port']} {server['metrics_port']}" in dockerfile
