"""The folder that an LMM's weights lie in, and the fingerprint that says which weights these are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from critiq_server.runtime.onnx import ProviderUnavailable

_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_DECISIVE = (*_WEIGHTS, "config.json", "tokenizer.json", "tokenizer.model", "preprocessor_config.json")
"""Files that decide what a feature is. Others (cards, generation settings, chat templates) do not."""


class LmmUnavailable(ProviderUnavailable):
    """The LMM that a bundle asks for does not run here; the message says why and what to do."""


def fingerprint(folder: Path) -> str:
    """SHA-256, as hexadecimal digits, over names and contents of the files that decide what a feature is. Blocks.

    Reads everything once: about ten seconds for 16 GB.

    Raises:
        LmmUnavailable: ``folder`` is none, or holds no weights.
    """
    files = sorted({file for pattern in _DECISIVE for file in folder.glob(pattern)})
    if not any(file.match(pattern) for file in files for pattern in _WEIGHTS):
        raise LmmUnavailable(
            f"{folder} holds no weights ({', '.join(_WEIGHTS)}): pass the folder of a Hugging Face model, with its "
            "weights, its config.json and its tokenizer"
        )
    lines = []
    for file in files:
        with file.open("rb") as stream:
            lines.append(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n")
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_config(folder: Path, name: str = "config.json") -> dict[str, object]:
    """A JSON file of ``folder``; raises ``LmmUnavailable`` where there is none, or it is damaged."""
    path = folder / name
    try:
        held = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise LmmUnavailable(f"{path} cannot be read: {error}") from error
    if not isinstance(held, dict):
        raise LmmUnavailable(f"{path} holds no settings")
    return held


def check_revision(folder: Path, model: str, expected: str) -> None:
    """Raises ``LmmUnavailable`` if ``folder`` does not hold exactly the revision that a bundle was made with."""
    found = fingerprint(folder)
    if found != expected:
        raise LmmUnavailable(
            f"the folder {folder} of {model!r} has the fingerprint {found[:12]}…, the bundle was made with "
            f"{expected[:12]}…: other weights, configuration or tokenizer give other features. Fetch that revision, "
            "or export the bundle again with this folder"
        )
