"""Renders of the chart, by Helm in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.kubernetes import Object

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "critiq"
FILES = sorted((CHART / "ci").glob("*-values.yaml"))


def need_helm() -> None:
    """Skips the module where Helm's library is not installed."""
    if importlib.util.find_spec("helm_python") is None:
        pytest.skip("needs Helm's library: pip install helm-python-sdk", allow_module_level=True)


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """``python -m tools.chart ARGUMENTS``"""
    return subprocess.run(
        [sys.executable, "-m", "tools.chart", *arguments],
        cwd=ROOT, input=stdin, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip


def outcomes(values: list[dict[str, Any]]) -> list[dict[str, str]]:
    """For each values, the rendered ``text`` with the ``notes``, or the ``error``."""
    done = run("renders", stdin=json.dumps(values))
    assert done.returncode == 0, done.stderr
    found: list[dict[str, str]] = json.loads(done.stdout)
    return found


def values_files() -> dict[str, dict[str, Any]]:
    """The values in ``ci/``, by name."""
    return {path.name.removesuffix("-values.yaml"): yaml.safe_load(path.read_bytes()) or {} for path in FILES}


def only(documents: list[Object], *kinds: str) -> Object:
    """The one object of these kinds."""
    (found,) = [document for document in documents if document["kind"] in kinds]
    return found


def settings_of(documents: list[Object]) -> str:
    """The server's settings as they stand in the ConfigMap."""
    (text,) = [
        document["data"]["critiq.yaml"]
        for document in documents
        if document["kind"] == "ConfigMap" and "critiq.yaml" in document["data"]
    ]
    return str(text)


def run_code(code: str, *arguments: str) -> None:
    """Python with Helm's library, in a process of its own; what it raises fails the test."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def arguments_of(container: Object) -> list[str]:
    """What ``critiq serve`` is started with: the image's entry point is ``critiq``."""
    dockerfile = (ROOT / "deploy" / "docker" / "Dockerfile").read_text()
    assert 'ENTRYPOINT ["critiq"]' in dockerfile
    assert "command" not in container
    command, *arguments = container["args"]
    assert command == "serve"
    return arguments
