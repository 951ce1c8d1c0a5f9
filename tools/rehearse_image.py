"""Builds an image of deploy/docker/Dockerfile and tries it, where there is no Docker engine.

    sudo .venv/bin/python -m tools.rehearse_image [--target cpu|gpu]

buildah builds the Dockerfile as it stands; only its base comes from no registry: it is a Debian with Python made by
debootstrap, under the name that the Dockerfile asks for. The image's own commands then run in its files, as its user,
without capabilities, on a read-only root. Needs root and Debian's buildah, debootstrap and util-linux; goes to Debian's
archive and to the Python package index.
"""

# ruff: noqa: S101 - what is asserted is what is tried
from __future__ import annotations

import argparse
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

ROOT = Path(__file__).parents[1]
DOCKERFILE = ROOT / "deploy" / "docker" / "Dockerfile"
PACKAGES = "ca-certificates,python3,python3-venv,python3-pip"
COMPILERS = ("cc", "c++", "gcc", "g++", "clang", "ld", "make", "rustc", "go")
# As its user, without capabilities or ways to get them, in the image's files, where nothing can be written.
ENTER = """
mount --make-rprivate / && mount --bind "$0" "$0" && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev" \
  && mount -o remount,bind,ro "$0" && exec chroot "$0" setpriv --reuid {uid} --regid {gid} --clear-groups \
  --no-new-privs --bounding-set=-all env -i -C {directory} "$@"
"""


def run(*command: str, **options: Any) -> str:
    """Output of a command that must work."""
    return str(
        subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, **options).stdout
    ).strip()


def base_image(name: str) -> None:
    """Makes the base of a Debian archive's packages, unless there is an image of that name."""
    if (
        subprocess.run(["buildah", "inspect", "--type", "image", name], capture_output=True, check=False).returncode
        == 0
    ):
        return
    release = name.rpartition("-")[2]
    with tempfile.TemporaryDirectory() as folder:
        run("debootstrap", "--variant=minbase", f"--include={PACKAGES}", release, folder, stderr=sys.stderr)
        (Path(folder) / "usr/local/bin/python").symlink_to("../../bin/python3")
        container = run("buildah", "from", "scratch")
        try:
            run("cp", "-a", f"{folder}/.", run("buildah", "mount", container))
            run("buildah", "commit", "-q", container, f"docker.io/library/{name}")
        finally:
            run("buildah", "rm", container)


def build(target: str) -> str:
    """Builds a target; returns the image's name."""
    image = f"critiq:{target}"
    revision = run("git", "rev-parse", "HEAD")
    command = ["buildah", "bud", "--format=docker", "--pull-never", "--isolation=chroot", f"--target={target}"]
    command += ["-v", "/etc/ssl/certs:/etc/ssl/certs:ro", f"--build-arg=REVISION={revision}", "-t", image]
    run(*command, "-f", str(DOCKERFILE), ".", stderr=sys.stderr)
    return image


@contextmanager
def files_of(image: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The image's files and its configuration."""
    container = run("buildah", "from", "--pull-never", image)
    try:
        config = json.loads(run("buildah", "inspect", "--type", "image", image))["Docker"]["config"]
        yield Path(run("buildah", "mount", container)), config
    finally:
        run("buildah", "rm", container)


class Trial:
    """The image's commands in its files, on free ports."""

    def __init__(self, files: Path, config: dict[str, Any]) -> None:
        self._files, self._config = files, config
        self.uid, _, self._gid = config["User"].partition(":")
        with socket.socket() as one, socket.socket() as two, socket.socket() as three:
            ports = []
            for entry in (one, two, three):
                entry.bind(("127.0.0.1", 0))
                ports.append(entry.getsockname()[1])
        self.url = f"http://127.0.0.1:{ports[0]}"
        names = ("CRITIQ_SERVER__REST_PORT", "CRITIQ_SERVER__GRPC_PORT", "CRITIQ_SERVER__METRICS_PORT")
        self._environment = [
            *config["Env"],
            *(f"{name}={port}" for name, port in zip(names, ports, strict=True)),
            f"CRITIQ_READY_URL={self.url}/readyz",
        ]

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        script = ENTER.format(uid=self.uid, gid=self._gid, directory=shlex.quote(self._config["WorkingDir"]))
        whole = ["unshare", "--mount", "sh", "-c", script, str(self._files), *self._environment, *command]
        return subprocess.Popen(whole, **options)

    def healthy(self) -> bool:
        """Runs the health check."""
        kind, *command = self._config["Healthcheck"]["Test"]
        assert kind == "CMD"
        with self.start(command, stderr=subprocess.DEVNULL) as check:
            return check.wait(30) == 0


def try_out(files: Path, config: dict[str, Any]) -> None:
    """Raises ``AssertionError`` where the image is not what it should be; prints what was found."""
    trial = Trial(files, config)
    found = [
        name
        for name in COMPILERS
        for folder in ("usr/bin", "usr/local/bin", "opt/critiq/bin")
        if (files / folder / name).exists()
    ]
    assert not found, f"there are compilers: {found}"
    assert trial.uid == "10001"
    mine = [path for path in (files / "opt/critiq").rglob("*") if path.lstat().st_uid == int(trial.uid)]
    assert not mine, f"the server could change itself: {mine[:3]}"
    say("labels", json.dumps({name.rpartition(".")[2]: text for name, text in config["Labels"].items()}))
    with trial.start(["touch", "/var/lib/critiq/x"], stderr=subprocess.PIPE) as touch:
        assert b"Read-only file system" in touch.communicate()[1]
    say("root", "read-only")
    assert not trial.healthy(), "the health check passes without a server"
    say("health check without a server", "fails")
    started = time.monotonic()
    server = trial.start([*config["Entrypoint"], *config["Cmd"]])
    try:
        while not trial.healthy():
            assert server.poll() is None, "the server ended"
            assert time.monotonic() < started + 60, "the server does not get healthy"
        say("health check", f"passes {time.monotonic() - started:.1f} s after the start")
        status = Path(f"/proc/{server.pid}/status").read_text()
        for name, expected in (("Uid", trial.uid), ("CapEff", "0" * 16), ("CapBnd", "0" * 16), ("NoNewPrivs", "1")):
            value = re.search(rf"^{name}:\s+(\S+)", status, re.MULTILINE)
            assert (value[1] if value else None) == expected, name
        say("process", f"uid {trial.uid}, no capabilities, no new privileges")
        picture = io.BytesIO()
        Image.radial_gradient("L").convert("RGB").save(picture, "PNG")
        response = httpx.post(
            f"{trial.url}/v1/score", files={"image": ("a.png", picture.getvalue())}, timeout=30, trust_env=False
        )
        assert response.status_code == 200, response.text
        say("score", ", ".join(f"{score['dimension']} {score['calibrated']}" for score in response.json()["scores"]))
        resident = re.search(r"^VmHWM:\s+(\d+)", Path(f"/proc/{server.pid}/status").read_text(), re.MULTILINE)
        assert resident
        say("memory", f"{int(resident[1]) / 1024:.0f} MiB at the most")
        server.send_signal(signal.SIGTERM)
        assert server.wait(40) == 0
        say("SIGTERM", "ends it with status 0")
    finally:
        server.kill()
        server.wait()


def missing_libraries(files: Path) -> set[str]:
    """Libraries that onnxruntime's CUDA provider asks for and the image lacks: the driver's only, one hopes."""
    folder = files / "opt/critiq/lib/python3.11/site-packages"
    provider = next(folder.glob("onnxruntime/capi/libonnxruntime_providers_cuda.so"))
    paths = [str(path) for path in folder.glob("nvidia/*/lib")]
    asked = run("ldd", str(provider), env={**os.environ, "LD_LIBRARY_PATH": ":".join(paths)})
    return set(re.findall(r"(\S+) => not found", asked))


def say(what: str, value: str) -> None:
    sys.stdout.write(f"{what}: {value}\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", choices=["cpu", "gpu"], default="cpu")
    target = parser.parse_args().target
    os.environ.setdefault("STORAGE_DRIVER", "vfs")
    found = re.search(r"^ARG PYTHON=(\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    assert found
    base_image(found[1])
    started = time.monotonic()
    image = build(target)
    say("built", f"{image} in {time.monotonic() - started:.0f} s")
    with files_of(image) as (files, config):
        say("size", run("du", "-sh", "--exclude=proc", str(files)).split()[0])
        if target == "gpu":
            say("libraries that the CUDA provider lacks", ", ".join(sorted(missing_libraries(files))) or "none")
        try_out(files, config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
