"""What is imported by whom: callers stay light, serving ONNX needs no torch, and arrows point only down."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import critiq_server
from tests.support.bundles import write_bundle

HEAVY = ("torch", "transformers", "onnx", "onnxscript", "scipy", "matplotlib", "pandas", "ray")

SERVING = """
import asyncio, sys
from pathlib import Path
from critiq_server.app import App
from critiq_server.images.source import RawImage
from critiq_server.queries import Query
from critiq_server.settings import load_settings

async def main():
    ports = {"rest_port": 0, "grpc_port": 0, "metrics_port": 0}
    models = {"directories": [Path(sys.argv[1])], "default": "tiny", "load": ["tiny"]}
    app = App(load_settings(None, {"server": ports, "models": models}))
    await app.start()
    result = await app.service.score(Query(RawImage(bytes([51]) * 3072, (32, 32, 3)), "a red cat"))
    assert abs(result["brightness"].raw - 0.2) < 1e-6
    await app.stop(grace=1)
    assert "critiq_server.telemetry.tracer" not in sys.modules  # OpenTelemetry itself comes with redis, if it is there

asyncio.run(main())
"""


def modules_after(code: str, *arguments: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds once it has run ``code``."""
    code += "\nimport sys; print('MODULES', *{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rpartition("MODULES")[2].split())


def test_importing_the_client_is_light() -> None:
    modules = modules_after("import critiq")
    assert "critiq" in modules
    assert not modules & {*HEAVY, "onnxruntime", "fastapi", "uvicorn", "critiq_server", "tokenizers"}


def test_importing_the_servers_command_line_starts_no_runtime() -> None:
    assert not modules_after("import critiq_server, critiq.cli") & {*HEAVY, "uvicorn", "fastapi"}


def test_serving_an_onnx_bundle_needs_neither_torch_nor_transformers(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    modules = modules_after(SERVING, str(tmp_path))
    assert {"onnxruntime", "fastapi", "grpc"} <= modules
    assert not modules & {*HEAVY, "pyinstrument"}


# From the top down; a module may import those of later layers, and of its own.
LAYERS = [
    ["cli", "policy_cli", "security.keys_cli", "bulk.cli", "ray_serve", "processes.supervisor"],
    ["app", "bulk"],
    ["api", "processes.private"],
    [
        "jobs.operations",
        "jobs.runner",
        "jobs.callbacks",
        "jobs.outbox",
        "jobs.store",
        "jobs.records",
        "jobs.thread",
        "jobs.turn",
    ],
    ["moderation"],
    ["assembly"],
    ["service"],
    ["models", "accounting"],
    ["routing.operations"],
    ["routing.shadow"],
    ["answering"],
    ["queries"],
    ["queues", "registry", "descriptions"],
    ["engine"],
    ["bundles.model", "bundles.repository"],
    ["bundles.golden"],
    ["bundles.loaded"],
    ["flags"],
    ["settings"],
    ["images", "jobs.settings", "features", "runtime", "prompts"],
    ["outbound"],
    [
        "scoring",
        "security.counts_file",
        "security.guard",
        "security.keys",
        "security.limits",
        "security.settings",
        "security.shared_counts",
        "security.tls",
        "security.tokens",
        "telemetry",
        "page",
        "listening",
        "connections",
        "processes.group",
        "processes.merging",
        "bundles.manifest",
        "bundles.staging",
        "bundles.lmm",
        "bundles.views",
        "others",
        "stopping",
        "strict_yaml",
        "wording",
        "routing.agreement",
        "routing.keys",
        "routing.settings",
        "routing.shadow_metrics",
        "routing.state",
        "routing.table",
    ],
]
EXCEPTIONS = {
    # Names in annotations only, under TYPE_CHECKING.
    ("telemetry.logs", "settings"),
}
ROOT = Path(critiq_server.__file__).parent


def layer(module: str) -> int:
    for number, names in enumerate(LAYERS):
        if any(module == name or module.startswith(f"{name}.") for name in names):
            return number
    raise AssertionError(f"{module} is in no layer; put it into one")


def imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, "imports are absolute"
            found.add(node.module)
            if node.module.startswith("critiq_server"):
                found |= {
                    f"{node.module}.{name.name}"
                    for name in node.names
                    if (ROOT.parent / node.module.replace(".", "/") / f"{name.name}.py").exists()
                }
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return found


FILES = sorted(path for path in ROOT.rglob("*.py") if path.name != "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_point_down(path: Path) -> None:
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for name in imported(path):
        assert not name.startswith(("critiq_exporters", "tests")), name
        # Features are computed with torch; the test above holds that nobody else pays for it.
        assert module.startswith("runtime.lmm.") or not name.startswith(("torch", "transformers")), name
        target = name.removeprefix("critiq_server.")
        is_module = (ROOT / target.replace(".", "/")).with_suffix(".py").exists()
        if name.startswith("critiq_server.") and is_module and (module, target) not in EXCEPTIONS:
            assert layer(module) <= layer(target), f"{module} imports {target}"


@pytest.mark.parametrize("package", ["clients/python/critiq"])
def test_the_client_imports_the_server_nowhere_but_to_start_it(package: str) -> None:
    root = ROOT.parent.parent / package
    for path in root.rglob("*.py"):
        for name in imported(path):
            assert not name.startswith(("critiq_exporters", "torch", "fastapi", "onnxruntime")), (path, name)
            if name.startswith("critiq_server"):
                assert path.parent.name == "cli", path
