"""Names of stage outputs: a BLAKE3 hash of what went in.

A key is the same on every machine, in every process, for ever, until the stage itself changes: it hashes the stage's
digest and the keys of its inputs, down to the decoded pixels and the normalised prompt. Cryptographic, because callers
choose the pictures: nobody may be able to make two with one key.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

Key = bytes
"""32 bytes."""


def encoded_key(data: bytes) -> Key:
    """Of a picture file's bytes. Not a root key (two files can hold the same pixels), only a short cut to one."""
    return _prefixed(b"critiq/encoded/1\0", data)


def pixels_key(pixels: NDArray[np.uint8]) -> Key:
    """Of decoded pixels, uint8 ``[height, width, 3]``."""
    height, width, channels = pixels.shape
    return _prefixed(b"critiq/pixels/1\0%d,%d,%d\0" % (height, width, channels), np.ascontiguousarray(pixels).data)


def prompt_key(prompt: str) -> Key:
    """Of a normalised prompt."""
    return blake3(b"critiq/prompt/1\0" + prompt.encode()).digest()


def stage_digest(description: Mapping[str, Any]) -> Key:
    """Of everything that decides what a stage computes, as plain JSON values."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake3(b"critiq/stage/1\0" + canonical.encode()).digest()


def output_key(digest: Key, inputs: Sequence[Key]) -> Key:
    """Of a stage's output, from the stage's digest and its inputs' keys in the order of the input names."""
    return blake3(b"critiq/output/1\0" + digest + b"".join(inputs)).digest()


def _prefixed(prefix: bytes, data: bytes | memoryview) -> Key:
    return blake3(prefix).update(data).digest()
