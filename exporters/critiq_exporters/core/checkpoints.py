"""Published checkpoints -> our modules: tensors only, every name accounted for.

Files are read as safetensors or by torch's weights-only loader, which builds tensors and nothing else. A table from the
original parameter names to ours decides where each tensor goes; what is missing, unknown or wrongly shaped is listed
before anything is filled.
"""

from __future__ import annotations

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "params", "model")
_SHOWN = 8


class CheckpointError(ValueError):
    """The checkpoint is not what the family needs; the message lists what is wrong, in groups."""


def read_state(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by name, on the CPU.

    ``path`` is a file, or a folder that holds exactly one. A state dict inside ``state_dict``, ``params`` or ``model``
    is unwrapped, and the ``module.`` that data-parallel training puts before every name is dropped.

    Raises:
        CheckpointError: there is no such file, it is damaged, or it holds anything but tensors by name.
    """
    file = find_checkpoint(path)
    state = _safetensors(file) if file.suffix == ".safetensors" else _torch_file(file)
    if state and all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return state


def fill(module: nn.Module, state: Mapping[str, Tensor], names: Mapping[str, str], unused: Sequence[str] = ()) -> None:
    """Copies ``state`` into ``module``, as float32 where it holds another floating type.

    ``names`` gives our name for each original one, and must cover the whole of ``module``; entries that fully match a
    regular expression of ``unused`` are left out. Buffers of ``module`` are constants that our code computes: the
    checkpoint's must be equal to them, and may be missing.

    Raises:
        CheckpointError: parameters are missing, unknown, wrongly shaped, or not finite.
    """
    ours = module.state_dict(keep_vars=True)
    if uncovered := ours.keys() - set(names.values()):
        raise AssertionError(f"the table of names leaves out {sorted(uncovered)}")
    skip = re.compile("|".join(unused) or "(?!)")
    constants = {name for name in names if not isinstance(ours[names[name]], nn.Parameter)}
    problems = [
        *_grouped("missing", [name for name in names if name not in state and name not in constants]),
        *_grouped("unknown", [name for name in state if name not in names and not skip.fullmatch(name)]),
    ]
    shared = [name for name in names if name in state]
    wrong = [name for name in shared if state[name].shape != ours[names[name]].shape]
    problems += _grouped(
        "wrongly shaped", wrong, lambda name: f"is {list(state[name].shape)}, should be {list(ours[names[name]].shape)}"
    )
    right = [name for name in shared if name not in set(wrong)]
    problems += _grouped("not finite", [name for name in right if not state[name].isfinite().all()])
    problems += _grouped(
        "not what the architecture computes",
        [name for name in right if name in constants and not _same(state[name], ours[names[name]])],
    )
    if problems:
        raise CheckpointError("the checkpoint does not fit:\n" + "\n".join(problems))
    with torch.no_grad():
        for name in right:
            ours[names[name]].copy_(state[name])


def _same(theirs: Tensor, ours: Tensor) -> bool:
    return torch.equal(theirs.to(ours.dtype), ours)


def find_checkpoint(path: Path) -> Path:
    """``path`` itself, or the one checkpoint file in it. Raises ``CheckpointError`` where there is none, or several."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise CheckpointError(
            f"{path} does not exist; pass a local checkpoint file ({', '.join(SUFFIXES)}) or the folder that holds it"
        )
    found = sorted(entry for entry in path.iterdir() if entry.suffix in SUFFIXES)
    if len(found) != 1:
        held = ", ".join(entry.name for entry in found) or "none"
        raise CheckpointError(f"{path} must hold exactly one checkpoint file, it holds: {held}")
    return found[0]


def fingerprint(path: Path) -> str:
    """SHA-256, as hexadecimal digits, of a checkpoint file, or of the names and hashes of all weights in a folder."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    held = sorted(entry for entry in path.rglob("*") if entry.suffix in SUFFIXES and entry.is_file())
    lines = [f"{entry.relative_to(path).as_posix()} {fingerprint(entry)}\n" for entry in held]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _safetensors(file: Path) -> dict[str, Tensor]:
    try:
        state: dict[str, Tensor] = load_file(file)
    except SafetensorError as error:
        raise CheckpointError(f"{file} is not a whole safetensors file: {error}") from error
    return state


def _torch_file(file: Path) -> dict[str, Tensor]:
    try:
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{file} holds pickled objects and not only tensors, or is damaged; critiq never unpickles. "
            "Save the model's state_dict() and pass that file"
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file} is not a whole torch file: {error}") from error
    for key in _WRAPPERS:
        if isinstance(held, dict) and isinstance(held.get(key), dict):
            held = held[key]
    if not isinstance(held, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in held.items()
    ):
        raise CheckpointError(f"{file} does not hold a state dict (tensors by parameter name)")
    return held


def _grouped(what: str, names: Iterable[str], describe: object = None) -> list[str]:
    """Lines that list ``names``, those that differ only in their numbers as one."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    if not groups:
        return []
    lines = [f"  {what}: {sum(map(len, groups.values()))} parameters"]
    for group, members in list(groups.items())[:_SHOWN]:
        detail = f" {describe(members[0])}" if callable(describe) else ""
        example = f" ({len(members)} of them, first {members[0]})" if len(members) > 1 else ""
        lines.append(f"    {group}{detail}{example}")
    if len(groups) > _SHOWN:
        lines.append(f"    and {len(groups) - _SHOWN} groups more")
    return lines
