"""By what a request is sent to one of an alias's targets: the same key meets the same version while shares stay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextvars import ContextVar
from functools import lru_cache
from hashlib import blake2b

from blake3 import blake3

from critiq.aliases import AliasTarget
from critiq_server.security.limits import caller

HEADER = "x-critiq-routing-key"
routing_key: ContextVar[str] = ContextVar("routing_key", default="")
"""What the caller of the current task's request sent as its key; empty: nothing."""


def key_of(pictures: Iterable[bytes]) -> bytes:
    """The key of a request: what its caller sent, else the name of its API key, else what is in its pictures."""
    if sent := routing_key.get():
        return b"sent\0" + sent.encode()
    if name := caller.get():
        return b"caller\0" + name.encode()
    return b"pictures\0" + b"".join(blake3(picture).digest() for picture in pictures)


def choose(targets: Sequence[AliasTarget], key: bytes) -> AliasTarget:
    """The target for a key: over many keys each gets its share.

    Each target draws a number for the key, weighted by its share, and the largest wins. So a target whose share grows
    only takes keys from others, and one that is exchanged for another version passes on no more than its own.
    """
    return max(targets, key=lambda target: _draw(target, key)) if len(targets) > 1 else targets[0]


def _draw(target: AliasTarget, key: bytes) -> float:
    drawn = blake2b(key, digest_size=8, key=_seed(target.model, target.version)).digest()
    share = (int.from_bytes(drawn) + 0.5) / 2**64
    return -target.percent / math.log(share) if share < 1 else math.inf


@lru_cache(maxsize=256)
def _seed(model: str, version: str) -> bytes:
    return blake2b(f"critiq/alias/1\0{model}\0{version}".encode(), digest_size=32).digest()
