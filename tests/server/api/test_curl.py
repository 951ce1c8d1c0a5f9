"""Every command of docs/curl.md, run with curl against a live server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.fixtures.images import encoded, photo
from tests.support.bundles import write_bundle
from tests.support.servers import ServerProcess, server_process

PAGE = (Path(__file__).parents[3] / "docs" / "curl.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
POLICY = """
name: gallery
version: "1"
default: accept
missing: review
rules:
  - {name: poor, when: {dimension: visual_quality, below: 0.1}, decision: reject, reason: poor}
"""

pytestmark = pytest.mark.skipif(
    not all(shutil.which(tool) for tool in ("curl", "jq", "bash")), reason="needs curl, jq and bash"
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, Path]]:
    folder = tmp_path_factory.mktemp("curl")
    for seed, name in enumerate(("a.png", "b.png")):
        (folder / name).write_bytes(encoded(photo(96, 64, seed), "PNG"))
    (folder / "gallery.yaml").write_text(POLICY)
    write_bundle(folder / "bundles", name="clip")
    settings = {
        "models.directories": [str(folder / "bundles")],
        "moderation.policies": [str(folder / "gallery.yaml")],
        "moderation.openai.enabled": True,
        "jobs.path": str(folder / "jobs.db"),
        "models.allow_changes": True,
        "drift.allow_changes": True,
        "telemetry.profiling": True,
    }
    arguments = [part for name, value in settings.items() for part in ("--set", f"{name}={json.dumps(value)}")]
    with server_process(arguments, folder / "log") as process:
        yield process, folder


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("localhost:8000")[1].split()[0])
def test_block(server: tuple[ServerProcess, Path], block: str) -> None:
    process, folder = server
    script = block.replace("localhost:8000", process.rest.removeprefix("http://"))
    # Each curl fails on an HTTP error (-f); pipefail and -e hand that on.
    assert len(re.findall(r"\bcurl -sf", block)) == len(re.findall(r"\bcurl\b", block))
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], check=False, cwd=folder, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert done.stdout.strip() or "-o " in block or "unload" in block


def test_the_page_has_every_route(server: tuple[ServerProcess, Path]) -> None:
    document = httpx.get(f"{server[0].rest}/openapi.json", trust_env=False).json()
    text = (
        "\n".join(BLOCKS)
        .replace("$job", "NAME")
        .replace("critiq-builtin", "NAME")
        .replace("/clip/", "/NAME/")
        .replace("/canary", "/NAME")
        .replace('"', "")
        .replace("'", "")
    )
    lines = text.replace("\\\n", " ").splitlines()
    for path, methods in document["paths"].items():
        address = re.escape("localhost:8000" + re.sub(r"\{\w+\}", "NAME", path)) + r"(\?\S*)?(\s|$|\))"
        for method in methods:
            found = [line for line in lines if re.search(address, line)]
            if method == "delete":
                found = [line for line in found if "-X DELETE" in line]
            elif method == "post":
                found = [line for line in found if re.search(r"-X POST| -F | -d |--data-binary", line)]
            assert found, (method, path)
