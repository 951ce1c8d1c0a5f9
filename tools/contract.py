"""The contract's generated files: ``python tools/contract.py generate|check``.

``generate`` writes the stubs into the packages that use them and the descriptor set of the contract beside the .proto
files.
``check`` fails if the stubs are not what the .proto files give, or if the .proto files have changed in a way that
breaks callers built from the recorded descriptor set.
"""

from __future__ import annotations

import filecmp
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet
from grpc_tools import protoc

ROOT = Path(__file__).parents[1]
PROTO = ROOT / "proto"
STUBS = {"critiq": ROOT / "clients" / "python", "inference": ROOT / "server" / "critiq_server" / "api" / "oip"}
"""Where the stubs of each folder of ``proto/`` go."""
PUBLISHED = ("inference",)
"""Protocols of others, which we serve. Their own clients register the same names in the process's pool of messages, so
our stubs have a pool of their own; and nobody needs our client stubs."""
RECORD = PROTO / "contract.binpb"


def main(arguments: list[str]) -> int:
    if arguments not in (["generate"], ["check"]):
        sys.stderr.write(f"{__doc__}\n")
        return 2
    problems = breaking_changes(_recorded(), describe()) if RECORD.exists() else []
    if arguments == ["generate"]:
        if not problems:
            for folder, target in STUBS.items():
                generate(folder, target)
            RECORD.write_bytes(describe().SerializeToString(deterministic=True))
    else:
        problems += stale_stubs()
    for problem in problems:
        sys.stderr.write(f"contract: {problem}\n")
    return 1 if problems else 0


def generate(folder: str, target: Path) -> None:
    """Writes ``*_pb2.py``, ``.pyi`` and, for our own services, ``*_pb2_grpc.py`` of ``folder`` under ``target``."""
    kinds = ("python", "pyi") if folder in PUBLISHED else ("python", "pyi", "grpc_python")
    _protoc(*(f"--{kind}_out={target}" for kind in kinds), folder=folder)
    if folder in PUBLISHED:
        for path in (target / folder).glob("*_pb2.py"):
            text = path.read_text().replace("_descriptor_pool.Default()", "_descriptor_pool.DescriptorPool()")
            path.write_text(text)


def describe(root: Path = PROTO) -> FileDescriptorSet:
    """The contract in ``root``, as descriptors."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "set.binpb"
        _protoc(f"--descriptor_set_out={path}", root=root)
        return FileDescriptorSet.FromString(path.read_bytes())


def stale_stubs() -> list[str]:
    """Stubs that are missing or not what the .proto files give."""
    with tempfile.TemporaryDirectory() as directory:
        fresh = Path(directory)
        stale: list[str] = []
        for folder, target in STUBS.items():
            generate(folder, fresh)
            names = [str(path.relative_to(fresh)) for path in sorted((fresh / folder).rglob("*_pb2*"))]
            _, different, missing = filecmp.cmpfiles(fresh, target, names, shallow=False)
            stale += [*different, *missing]
    return [f"{name} is not what proto/ gives; run `make proto` and commit it" for name in stale]


def breaking_changes(old: FileDescriptorSet, new: FileDescriptorSet) -> list[str]:
    """What in ``new`` breaks callers built from ``old``: things removed, renumbered, renamed or of another type."""
    problems: list[str] = []
    new_messages, new_enums, new_methods = _messages(new), _enums(new), _methods(new)
    for name, message in _messages(old).items():
        if name not in new_messages:
            problems.append(f"message {name} is gone")
            continue
        fields = {field.number: field for field in new_messages[name].field}
        for field in message.field:
            other = fields.get(field.number)
            where = f"{name}.{field.name} (number {field.number})"
            if other is None:
                problems.append(f"{where} is gone")
            elif (other.name, other.type, other.label, other.type_name) != (
                field.name,
                field.type,
                field.label,
                field.type_name,
            ):
                problems.append(f"{where} has another name or type")
    for name, enum in _enums(old).items():
        values = {(value.name, value.number) for value in new_enums[name].value} if name in new_enums else set()
        problems += [
            f"{name}.{value.name} is gone or renumbered"
            for value in enum.value
            if (value.name, value.number) not in values
        ]
    for name, signature in _methods(old).items():
        if new_methods.get(name) != signature:
            problems.append(f"method {name} is gone or has another signature")
    return problems


def _recorded() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(RECORD.read_bytes())


def _protoc(*outputs: str, root: Path = PROTO, folder: str = ".") -> None:
    files = sorted(str(path.relative_to(root)) for path in (root / folder).rglob("*.proto"))
    if protoc.main(["protoc", f"-I{root}", *outputs, *files]) != 0:
        raise SystemExit("protoc failed; its message stands above")


def _messages(files: FileDescriptorSet) -> dict[str, DescriptorProto]:
    found: dict[str, DescriptorProto] = {}

    def walk(prefix: str, messages: Iterator[DescriptorProto]) -> None:
        for message in messages:
            found[f"{prefix}.{message.name}"] = message
            walk(f"{prefix}.{message.name}", iter(message.nested_type))

    for file in files.file:
        walk(file.package, iter(file.message_type))
    return found


def _enums(files: FileDescriptorSet) -> dict[str, EnumDescriptorProto]:
    found = {f"{file.package}.{enum.name}": enum for file in files.file for enum in file.enum_type}
    for name, message in _messages(files).items():
        found.update({f"{name}.{enum.name}": enum for enum in message.enum_type})
    return found


def _methods(files: FileDescriptorSet) -> dict[str, tuple[str, str, bool, bool]]:
    def of(file: FileDescriptorProto) -> Iterator[tuple[str, tuple[str, str, bool, bool]]]:
        for service in file.service:
            for method in service.method:
                signature = (method.input_type, method.output_type, method.client_streaming, method.server_streaming)
                yield f"{file.package}.{service.name}.{method.name}", signature

    return dict(entry for file in files.file for entry in of(file))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
