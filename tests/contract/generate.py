"""Generates the protobuf stubs into the client package: ``python -m tests.contract.generate``."""

from __future__ import annotations

import sys
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).parents[2]
PROTO = ROOT / "proto"
STUBS = ROOT / "clients" / "python"


def generate(target: Path) -> None:
    """Writes ``critiq/v1/*_pb2.py``, ``*_pb2.pyi`` and ``*_pb2_grpc.py`` under ``target``."""
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTO}", *outputs, *files]) != 0:
        raise SystemExit("protoc failed; its message stands above")


def describe(target: Path) -> None:
    """Writes the descriptor set that the compatibility check compares with."""
    files = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    if protoc.main(["protoc", f"-I{PROTO}", f"--descriptor_set_out={target}", *files]) != 0:
        raise SystemExit("protoc failed; its message stands above")


if __name__ == "__main__":
    generate(STUBS)
    sys.stdout.write(f"stubs written to {STUBS}/critiq/v1\n")
