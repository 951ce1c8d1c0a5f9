"""What crosses Ray between a proxy and a replica: a request with its time limit one way, an answer or a failure back.

Ray's own way of ending a call in an error loses its trailing metadata, which hold critiq's errors: they travel as data.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import NamedTuple

import grpc

Metadata = tuple[tuple[str, str | bytes], ...]

REMAINING_KEY = "critiq-remaining-ms"
"""Metadata between proxy and replica: milliseconds until a stream's deadline."""

_ANSWER, _FAILURE = b"\x00", b"\x01"


class Request(NamedTuple):
    """A unary call's message, and the seconds until its deadline (``None``: it has none)."""

    data: bytes
    remaining: float | None


@dataclass(frozen=True, slots=True)
class Failure:
    """How a call ended other than in an answer."""

    status: grpc.StatusCode
    details: str
    trailing: Metadata


class Frame:
    """One of the two, as the message that Ray wants to serialise."""

    def __init__(self, content: bytes | Failure) -> None:
        self._content = content

    def SerializeToString(self) -> bytes:  # noqa: N802 - what Ray calls
        """The bytes that :func:`unpack` reads."""
        if isinstance(self._content, bytes):
            return _ANSWER + self._content
        failure = self._content
        trailing = [
            [key, None, base64.b64encode(value).decode()] if isinstance(value, bytes) else [key, value, None]
            for key, value in failure.trailing
        ]
        return _FAILURE + json.dumps([failure.status.name, failure.details, trailing]).encode()


def unpack(data: bytes) -> bytes | Failure:
    """What a :class:`Frame` holds; raises ``ValueError`` for anything else."""
    kind, content = data[:1], data[1:]
    if kind == _ANSWER:
        return content
    if kind != _FAILURE:
        raise ValueError("no frame of a replica")
    status, details, trailing = json.loads(content)
    pairs = tuple((key, text if coded is None else base64.b64decode(coded)) for key, text, coded in trailing)
    return Failure(grpc.StatusCode[status], details, pairs)
