"""A bundle's files are damaged, cut short or lost, before it is loaded and while it is served."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.reliability.load import FULL, callers, codes, under_load
from tests.support.bundles import write_bundle
from tests.support.servers import server_process

pytestmark = pytest.mark.reliability

Damage = Callable[[Path], None]


def flip(name: str, share: float = 0.5) -> Damage:
    """One bit of a file, in place, ``share`` of the way into it."""

    def damage(bundle: Path) -> None:
        with (bundle / name).open("r+b") as file:
            at = int(share * ((bundle / name).stat().st_size - 1))
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    return damage


def cut(name: str) -> Damage:
    return lambda bundle: os.truncate(bundle / name, (bundle / name).stat().st_size // 2)


def lose(name: str) -> Damage:
    return lambda bundle: (bundle / name).unlink()


FILES = ("image.onnx", "head.onnx", "tokenizer.json", "golden.npz")
DAMAGES: dict[str, tuple[Damage, str]] = {
    **{f"{name}, a bit": (flip(name), name) for name in FILES},
    **{f"{name}, cut short": (cut(name), name) for name in FILES},
    **{f"{name}, lost": (lose(name), name) for name in FILES},
    "manifest.json, a brace": (flip("manifest.json", 0.0), "manifest.json"),
    "manifest.json, cut short": (cut("manifest.json"), "manifest.json"),
    "manifest.json, lost": (lose("manifest.json"), ""),
    "everything lost": (shutil.rmtree, ""),
}


async def test_damaged_while_it_is_served(tmp_path: Path) -> None:
    bundle, whole = write_bundle(tmp_path / "models"), tmp_path / "whole"
    shutil.copytree(bundle, whole)
    arguments = ["--models", str(tmp_path / "models"), "--default", "tiny", "--load", "tiny"]
    arguments += ["--set", "models.allow_changes=true"]
    with server_process(arguments, tmp_path / "log") as server:
        async with callers(server, lambda level: level / 255) as asked:
            async with under_load(asked.over_both, 2) as outcomes:
                for name, (damage, blamed) in DAMAGES.items():
                    damage(bundle)
                    await asyncio.sleep(1 if FULL else 0)
                    refused = await asked.http.post("/v1/models/tiny/load")
                    assert refused.status_code == 409, (name, refused.text)
                    assert blamed in refused.json()["error"]["message"], (name, refused.text)
                    state = (await asked.http.get("/v1/models/tiny")).json()
                    assert state["state"] == "ready", name
                    assert "refused" in refused.json()["error"]["message"]
                    assert blamed in state["state_reason"], "operators see why, although it serves"
                    shutil.rmtree(bundle, ignore_errors=True)
                    shutil.copytree(whole, bundle)
                    repaired = await asked.http.post("/v1/models/tiny/load")
                    assert repaired.status_code == 200, (name, repaired.text)
                    assert repaired.json()["state_reason"] == ""
            assert codes(outcomes).keys() == {"OK"}, codes(outcomes)
            assert (await asked.http.get("/readyz")).status_code == 200
        assert await asyncio.to_thread(server.terminate) == 0
    assert "Traceback" not in (tmp_path / "log").read_text()
    print(
        f"bundle: {len(DAMAGES)} kinds of damage while served, each refused by name; {len(outcomes)} scored, none wrong"
    )


def test_damaged_before_it_is_loaded(tmp_path: Path) -> None:
    """The default model: the server says which file, and ends. Another one: the server goes on without it."""
    write_bundle(tmp_path / "models")
    flip("image.onnx")(write_bundle(tmp_path / "models", "broken"))
    command = [sys.executable, "-m", "critiq.cli", "serve", "--rest-port=0", "--grpc-port=0", "--metrics-port=0"]
    broken = [*command, "--models", str(tmp_path / "models"), "--load", "broken", "--default", "broken"]
    ended = subprocess.run(broken, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode in (1, 2)
    assert "image.onnx has SHA-256" in ended.stderr
    assert "Traceback" not in ended.stderr
    arguments = ["--models", str(tmp_path / "models"), "--load", "broken", "--load", "tiny", "--default", "tiny"]
    with server_process(arguments, tmp_path / "log") as server, httpx.Client(base_url=server.rest) as http:
        assert http.get("/readyz").status_code == 200
        state = http.get("/v1/models/broken").json()
        assert state["state"] == "failed"
        assert "image.onnx has SHA-256" in state["state_reason"]
