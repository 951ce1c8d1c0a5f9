"""What a job is made of on its way into the database and back."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import orjson

from critiq.errors import CritiqError
from critiq.jobs import JobResult, result_from_proto, result_to_proto
from critiq.v1 import jobs_pb2
from critiq_server.engine.demand import Priority
from critiq_server.images.source import EncodedImage, ImageSource, RawImage, RemoteImage
from critiq_server.queries import Item, Query, Target


@dataclass(frozen=True, slots=True)
class StoredItem:
    """One item as it is stored: ``asked`` is JSON with all but the picture's bytes, which are ``data``.

    An item that could not even be read has its ``result`` from the start.
    """

    id: str
    asked: bytes
    data: bytes
    result: bytes | None = None

    @property
    def size(self) -> int:
        return len(self.asked) + len(self.data)


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to be stored."""

    items: Sequence[StoredItem]
    policy: str = ""
    policy_version: str = ""
    asked_policy: tuple[str, str] = ("", "")
    """Name and version as the caller gave them: what they stand for may change until the caller asks again."""
    callback: str = ""
    key: str = ""
    owner: str = ""
    """Name of the API key that submitted it; empty where none was asked for."""
    trace: str = ""
    """``traceparent`` of the call that submitted it; empty where it is not traced."""

    @property
    def size(self) -> int:
        return sum(item.size for item in self.items)

    def digest(self) -> bytes:
        """What the job asks, in 32 bytes: two jobs of one idempotency key must agree in it."""
        found = hashlib.sha256(orjson.dumps([*self.asked_policy, self.callback]))
        for item in self.items:
            for part in (item.id.encode(), item.asked, item.data, item.result or b""):
                found.update(len(part).to_bytes(8, "big") + part)
        return found.digest()


@dataclass(frozen=True, slots=True)
class PendingItem:
    """An item that has no result yet, after so many tries."""

    position: int
    id: str
    query: Query
    tries: int


def stored(item: Item) -> StoredItem:
    """An item of a request as it is stored."""
    if isinstance(item.query, CritiqError):
        return StoredItem(item.id, b"", b"", result_bytes(JobResult(item.id, error=item.query)))
    query = item.query
    image, target = query.image, query.target
    kind: list[object]
    if isinstance(image, RawImage):
        kind = ["raw", image.shape, image.dtype, image.layout]
    else:
        kind = ["url", image.url] if isinstance(image, RemoteImage) else ["encoded"]
    asked = {"image": kind, "prompt": query.prompt, "target": [target.model, target.version, target.dimensions]}
    return StoredItem(item.id, orjson.dumps(asked), image.data)


def query_of(asked: bytes, data: bytes) -> Query:
    """The query of a stored item, as bulk work."""
    values = orjson.loads(asked)
    kind, *rest = values["image"]
    image: ImageSource | RemoteImage
    if kind == "raw":
        shape, dtype, layout = rest
        image = RawImage(data, tuple(shape), dtype, layout)
    else:
        image = RemoteImage(rest[0]) if kind == "url" else EncodedImage(data)
    model, version, dimensions = values["target"]
    return Query(image, values["prompt"], Target(model, version, tuple(dimensions)), Priority.BULK)


def result_bytes(result: JobResult) -> bytes:
    return result_to_proto(result).SerializeToString()


def result_of(data: bytes) -> JobResult:
    return result_from_proto(jobs_pb2.JobResult.FromString(data))
