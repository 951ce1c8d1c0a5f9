"""Checkpoints by hub id, against a small hub of our own on loopback."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save

from critiq_exporters.core.checkpoints import CheckpointError, read_state
from critiq_exporters.core.hub import local_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b"{}",
    "model.safetensors": save({"weight": torch.arange(3.0)}),
    "pytorch_model.bin": b"must not be fetched beside safetensors",
    "notes.pdf": b"of no use",
}


class Hub(BaseHTTPRequestHandler):
    """What the hub's client asks for when it takes a snapshot: the list of files, their heads, their bytes."""

    asked: list[str]

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""

    def _answer(self, body: bool) -> None:
        path = self.path.split("?")[0]
        if path.startswith("/api/models/owner/tiny/tree/"):
            entries = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in FILES.items()]
            self._send(json.dumps(entries).encode(), body)
        elif path.startswith("/api/models/owner/tiny"):
            siblings = [{"rfilename": name} for name in FILES]
            self._send(json.dumps({"id": "owner/tiny", "sha": COMMIT, "siblings": siblings}).encode(), body)
        elif path.startswith("/owner/tiny/resolve/") and (name := path.rsplit("/", 1)[-1]) in FILES:
            type(self).asked.append(name)
            self._send(FILES[name], body)
        else:
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, data: bytes, body: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(data)


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_hub_id_is_fetched_once_and_found_again_without_the_hub(hub: str, tmp_path: Path) -> None:
    told: list[str] = []
    folder = local_checkpoint("owner/tiny", told.append, endpoint=hub, cache=tmp_path)
    assert told == ["owner/tiny is no path here: looking for it on the hub"]
    assert sorted(entry.name for entry in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert read_state(folder)["weight"].tolist() == [0, 1, 2]
    assert set(Hub.asked) == {"config.json", "model.safetensors"}
    nowhere = "http://127.0.0.1:9"
    assert local_checkpoint("owner/tiny", endpoint=nowhere, cache=tmp_path) == folder


def test_what_cannot_be_fetched_says_what_to_do(hub: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"owner/none does not exist here .* pass the local folder"):
        local_checkpoint("owner/none", endpoint=hub, cache=tmp_path)
    with pytest.raises(CheckpointError, match="cannot be fetched from the hub"):
        local_checkpoint("owner/tiny@main", endpoint="http://127.0.0.1:9", cache=tmp_path)
    with pytest.raises(CheckpointError, match=r"OWNER/NAME\[@REVISION\]"):
        local_checkpoint(str(tmp_path / "a" / "b" / "c.pt"))


def test_a_path_wins(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    file.write_bytes(FILES["model.safetensors"])
    assert local_checkpoint(str(file)) == file
