"""Where a checkpoint lies: on this machine, or on the Hugging Face hub, from which it is fetched once."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from critiq_exporters.core.checkpoints import SUFFIXES, CheckpointError

_HUB_ID = re.compile(r"(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w./-]+))?")
_WEIGHTS = [f"*{suffix}" for suffix in SUFFIXES]
_REST = ["*.json", "*.txt", "*.model", "*.mat"]


def local_checkpoint(
    given: str, say: Callable[[str], None] = lambda line: None, endpoint: str | None = None, cache: Path | None = None
) -> Path:
    """The file or folder that ``given`` means: a path, or ``OWNER/NAME[@REVISION]`` on the hub.

    A path that exists wins. From the hub come the weights (safetensors where there are any) and the small files beside
    them, into the hub's own cache; later calls find them there, also without a network.

    Args:
        given: a path or a hub id.
        say: told when something is fetched.
        endpoint: of the hub; the usual one where left out.
        cache: folder of downloads; the hub client's own where left out.

    Raises:
        CheckpointError: there is no such path, and the hub cannot be reached or has no such repository.
    """
    path = Path(given)
    if path.exists():
        return path
    parts = _HUB_ID.fullmatch(given)
    if parts is None:
        raise CheckpointError(
            f"{given} does not exist; pass a local checkpoint file ({', '.join(SUFFIXES)}), the folder that holds it, "
            "or OWNER/NAME[@REVISION] for one on the Hugging Face hub"
        )
    say(f"{given} is no path here: looking for it on the hub")
    return _fetched(parts["name"], parts["revision"], endpoint, cache)


def _fetched(name: str, revision: str | None, endpoint: str | None, cache: Path | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        # One request, which fails at once where there is no network; listing the tree would be tried for half a minute.
        found = HfApi(endpoint=endpoint).model_info(name, revision=revision, timeout=10)
        files = [entry.rfilename for entry in found.siblings or []]
        weights = ["*.safetensors"] if any(file.endswith(".safetensors") for file in files) else _WEIGHTS
        folder = snapshot_download(
            name, revision=revision, allow_patterns=[*weights, *_REST], endpoint=endpoint, cache_dir=cache
        )
    except Exception as error:  # the hub's client raises its own, its HTTP library's and the system's
        cached = _cached(name, revision, cache)
        if cached is None:
            reason = str(error).strip().splitlines()
            raise CheckpointError(
                f"{name} does not exist here and cannot be fetched from the hub "
                f"({type(error).__name__}: {reason[0] if reason else 'no reason given'}); without a network, fetch it "
                "elsewhere and pass the local folder"
            ) from error
        folder = cached
    return Path(folder)


def _cached(name: str, revision: str | None, cache: Path | None) -> str | None:
    """The folder of an earlier, complete download."""
    from huggingface_hub import snapshot_download

    for weights in (["*.safetensors"], _WEIGHTS):
        with contextlib.suppress(Exception):  # not there, or not all of it
            folder: str = snapshot_download(
                name, revision=revision, allow_patterns=[*weights, *_REST], local_files_only=True, cache_dir=cache
            )
            if any(entry.suffix in SUFFIXES for entry in Path(folder).rglob("*")):
                return folder
    return None
