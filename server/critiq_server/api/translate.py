"""Protobuf requests to the service's values. Answers go the other way through ``critiq.wire``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar, cast

from google.protobuf.message import DecodeError, Message

from critiq import wire
from critiq.errors import CritiqError, InvalidArgument
from critiq.v1 import scoring_pb2
from critiq_server.engine.demand import Priority
from critiq_server.images.source import EncodedImage, ImageSource, RawImage, RemoteImage
from critiq_server.queries import Item, Query, Target
from critiq_server.scoring.ranking import Selection

M = TypeVar("M", bound=Message)

_DTYPES: Mapping[int, str] = {0: "uint8", 1: "uint8", 2: "float32"}
_LAYOUTS: Mapping[int, str] = {0: "hwc", 1: "hwc", 2: "chw"}


def parse(kind: type[M], data: bytes) -> M:
    """The message in ``data``; raises ``InvalidArgument`` if there is none, or its text is not UTF-8."""
    message = kind()
    try:
        message.ParseFromString(data)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            f"the body ({len(data)} bytes) is not a {kind.DESCRIPTOR.full_name} message with UTF-8 text; "
            "check the contract's version and the prompt's encoding"
        ) from error
    return message


def query(request: scoring_pb2.ScoreRequest) -> Query:
    """Raises ``InvalidArgument`` if there is no picture."""
    return Query(image(request.image), request.prompt, target(request.target), priority(request.priority))


def moderate_query(request: scoring_pb2.ModerateRequest) -> tuple[Query, str, str]:
    """The query, and the name and version of the policy. Raises ``InvalidArgument`` if there is no picture."""
    query = Query(image(request.image), request.prompt, priority=priority(request.priority))
    return query, request.policy, request.policy_version


def item(entry: scoring_pb2.ScoreItem, default_id: str) -> Item:
    """An item with its query, or with the error of reading it."""
    name = entry.id or default_id
    try:
        return Item(name, query(entry.request))
    except CritiqError as error:
        return Item(name, error)


def image(message: scoring_pb2.Image) -> ImageSource | RemoteImage:
    """Raises ``InvalidArgument`` if no source is set."""
    kind = message.WhichOneof("source")
    if kind == "encoded":
        return EncodedImage(message.encoded)
    if kind == "raw":
        raw = message.raw
        # Numbers of a later contract go on as they are: decoding refuses them by name.
        dtype, layout = _DTYPES.get(raw.dtype, str(raw.dtype)), _LAYOUTS.get(raw.layout, str(raw.layout))
        return RawImage(raw.data, tuple(raw.shape), cast(Any, dtype), cast(Any, layout))
    if kind == "url":
        return RemoteImage(message.url)
    raise InvalidArgument("there is no picture; set image.encoded, image.raw or image.url", field="image")


def image_or_error(message: scoring_pb2.Image) -> ImageSource | RemoteImage | CritiqError:
    try:
        return image(message)
    except CritiqError as error:
        return error


def target(message: scoring_pb2.Target) -> Target:
    return Target(message.model, message.version, tuple(message.dimensions))


def selection(request: scoring_pb2.RankRequest) -> Selection:
    """Raises ``InvalidArgument`` for numbers out of range."""
    thresholds = []
    for position, entry in enumerate(request.thresholds):
        if entry.scale not in scoring_pb2.Reason.Scale.values():
            raise InvalidArgument(f"{entry.scale} is no scale of this contract", field=f"thresholds[{position}].scale")
        thresholds.append(wire.threshold_from_proto(entry))
    return Selection(request.top_k, tuple(thresholds), request.diversity, request.embedding)


def priority(number: int) -> Priority:
    return Priority.BULK if number == scoring_pb2.PRIORITY_BULK else Priority.INTERACTIVE


def pair(request: scoring_pb2.CompareRequest) -> tuple[Query, Query]:
    """The two queries of a comparison; raises ``InvalidArgument`` if a picture is missing."""
    queries = []
    for name in ("first", "second"):
        try:
            source = image(getattr(request, name))
        except CritiqError as error:
            raise InvalidArgument(error.message, field=name) from error
        queries.append(Query(source, request.prompt, target(request.target), priority(request.priority)))
    return queries[0], queries[1]
