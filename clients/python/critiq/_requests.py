"""What a call sends and how its answer is read, the same for both transports and both shells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_args
from urllib.parse import quote

from google.protobuf.message import Message

from critiq import types, wire, wire_verdicts
from critiq.errors import CritiqError, InvalidArgument, TooLarge
from critiq.images import MAX_MESSAGE_BYTES, ImageInput, split_pictures, to_image
from critiq.v1 import models_pb2, scoring_pb2

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """A picture with its prompt, for ``score_batch`` and ``score_stream``.

    ``id`` is echoed in the answer; by default it is the item's position, from 0, in decimal.
    """

    image: ImageInput
    prompt: str = ""
    id: str = ""


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked, and how urgently: see ``Target`` and ``Priority`` in the contract."""

    model: str = ""
    version: str = ""
    dimensions: Sequence[str] = ()
    priority: types.Priority = "interactive"

    def __post_init__(self) -> None:
        if self.priority not in get_args(types.Priority):
            raise InvalidArgument(f"{self.priority!r}; known are {list(get_args(types.Priority))}", field="priority")
        if isinstance(self.dimensions, str):
            raise InvalidArgument(f"give a sequence, for instance [{self.dimensions!r}]", field="dimensions")

    def target(self) -> scoring_pb2.Target:
        return scoring_pb2.Target(model=self.model, version=self.version, dimensions=list(self.dimensions))


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One unary call: what to send, where each transport sends it, and how to read the answer."""

    method: str
    """gRPC: ``Service/Method`` within package critiq.v1."""
    verb: str
    path: str
    """REST."""
    request: Message
    response: type[Message]
    read: Callable[[Any], T]
    params: Mapping[str, str] = field(default_factory=dict)
    body: bool = True
    """Whether REST sends the request as the body; else path and params say it all."""
    safe: bool = True
    """Whether the call may be tried again."""

    def check_size(self) -> None:
        """Raises :class:`~critiq.errors.TooLarge` rather than let a transport fail in its own words."""
        size = self.request.ByteSize()
        if size > MAX_MESSAGE_BYTES:
            raise TooLarge(f"the request has {size} bytes; the limit is {MAX_MESSAGE_BYTES}")


def score_request(image: ImageInput, prompt: str, options: Options, field: str = "") -> scoring_pb2.ScoreRequest:
    prefix = f"{field}." if field else ""
    return scoring_pb2.ScoreRequest(
        image=to_image(image, f"{prefix}image"),
        prompt=_prompt(prompt, f"{prefix}prompt"),
        target=options.target(),
        priority=wire.priority_to_proto(options.priority),
    )


def score(request: scoring_pb2.ScoreRequest) -> Call[scoring_pb2.ScoreResponse]:
    return Call("Scoring/Score", "POST", "/v1/score", request, scoring_pb2.ScoreResponse, _unchanged)


def score_batch(items: Sequence[scoring_pb2.ScoreItem]) -> Call[scoring_pb2.ScoreBatchResponse]:
    request = scoring_pb2.ScoreBatchRequest(items=items)
    return Call("Scoring/ScoreBatch", "POST", "/v1/score/batch", request, scoring_pb2.ScoreBatchResponse, _unchanged)


def prefetch(items: Sequence[scoring_pb2.ScoreItem]) -> Call[types.PrefetchResult]:
    request = scoring_pb2.ScoreBatchRequest(items=items)
    return Call(
        "Scoring/Prefetch", "POST", "/v1/prefetch", request, scoring_pb2.PrefetchResponse, wire.prefetch_from_proto
    )


def rank(
    images: Iterable[ImageInput],
    prompt: str,
    options: Options,
    top_k: int,
    at_least: Sequence[types.Threshold | str] = (),
    diversity: float = 0.0,
    embedding: str = "",
) -> Call[types.RankResult]:
    pictures = [to_image(image, f"images[{index}]") for index, image in enumerate(split_pictures(images, "images"))]
    if not pictures:
        raise InvalidArgument("no pictures", field="images")
    if top_k < 0:
        raise InvalidArgument(f"{top_k}; 0 or more are due", field="top_k")
    request = scoring_pb2.RankRequest(
        prompt=_prompt(prompt, "prompt"),
        images=pictures,
        target=options.target(),
        priority=wire.priority_to_proto(options.priority),
        top_k=top_k,
        thresholds=_thresholds(at_least),
        diversity=diversity,
        embedding=embedding,
    )
    return Call("Scoring/Rank", "POST", "/v1/rank", request, scoring_pb2.RankResponse, wire.rank_from_proto)


def _thresholds(at_least: Sequence[types.Threshold | str]) -> list[scoring_pb2.Threshold]:
    if isinstance(at_least, str | types.Threshold):
        raise InvalidArgument(f"give a sequence, for instance [{at_least!r}]", field="at_least")
    thresholds = [types.Threshold.parse(entry) if isinstance(entry, str) else entry for entry in at_least]
    for position, entry in enumerate(thresholds):
        if entry.scale not in get_args(types.Scale):
            raise InvalidArgument(
                f"{entry.scale!r} is no scale; known are {list(get_args(types.Scale))}",
                field=f"thresholds[{position}].scale",
            )
    return [wire.threshold_to_proto(entry) for entry in thresholds]


def compare(first: ImageInput, second: ImageInput, prompt: str, options: Options) -> Call[types.CompareResult]:
    request = scoring_pb2.CompareRequest(
        prompt=_prompt(prompt, "prompt"),
        first=to_image(first, "first"),
        second=to_image(second, "second"),
        target=options.target(),
        priority=wire.priority_to_proto(options.priority),
    )
    return Call("Scoring/Compare", "POST", "/v1/compare", request, scoring_pb2.CompareResponse, wire.compare_from_proto)


def moderate(
    image: ImageInput, prompt: str, policy: str, policy_version: str, priority: types.Priority
) -> Call[types.Verdict]:
    request = scoring_pb2.ModerateRequest(
        image=to_image(image, "image"),
        prompt=_prompt(prompt, "prompt"),
        policy=policy,
        policy_version=policy_version,
        priority=wire.priority_to_proto(Options(priority=priority).priority),
    )
    return Call(
        "Scoring/Moderate",
        "POST",
        "/v1/moderate",
        request,
        scoring_pb2.ModerateResponse,
        lambda response: wire_verdicts.verdict_from_proto(response.verdict),
    )


def policies() -> Call[list[types.PolicyInfo]]:
    return Call(
        "Scoring/Policies",
        "GET",
        "/v1/policies",
        scoring_pb2.PoliciesRequest(),
        scoring_pb2.PoliciesResponse,
        lambda response: [wire_verdicts.policy_from_proto(policy) for policy in response.policies],
        body=False,
    )


def list_models() -> Call[list[types.Model]]:
    return Call(
        "Models/List",
        "GET",
        "/v1/models",
        models_pb2.ListModelsRequest(),
        models_pb2.ListModelsResponse,
        lambda response: [wire.model_from_proto(model) for model in response.models],
        body=False,
    )


def get_model(name: str, version: str) -> Call[types.Model]:
    request = models_pb2.GetModelRequest(name=name, version=version)
    return Call(
        "Models/Get",
        "GET",
        _model_path(name),
        request,
        models_pb2.Model,
        wire.model_from_proto,
        _version(version),
        body=False,
    )


def load_model(name: str, version: str) -> Call[types.Model]:
    request = models_pb2.LoadModelRequest(name=name, version=version)
    path = f"{_model_path(name)}/load"
    return Call(
        "Models/Load",
        "POST",
        path,
        request,
        models_pb2.Model,
        wire.model_from_proto,
        _version(version),
        body=False,
        safe=False,
    )


def unload_model(name: str, version: str) -> Call[None]:
    request = models_pb2.UnloadModelRequest(name=name, version=version)
    path = f"{_model_path(name)}/unload"
    return Call(
        "Models/Unload",
        "POST",
        path,
        request,
        models_pb2.UnloadModelResponse,
        lambda _: None,
        _version(version),
        body=False,
        safe=False,
    )


def default_model(models: Sequence[types.Model]) -> types.Model:
    """What answers requests that name no model; the REST address of a model cannot leave its name out."""
    for model in models:
        if model.is_default:
            return model
    raise InvalidArgument("the server has no default model; name one", field="name")


def numbered_items(
    items: Iterable[Any], options: Options
) -> Iterator[tuple[str, scoring_pb2.ScoreRequest | CritiqError]]:
    """``(id, request)`` for each item; the error in its place if the item cannot be sent, so its neighbours can be."""
    for index, item in enumerate(split_pictures(items, "items")):
        yield numbered_item(index, item, options)


def numbered_item(index: int, item: Any, options: Options) -> tuple[str, scoring_pb2.ScoreRequest | CritiqError]:
    name = str(index)
    try:
        item = _as_item(item)
        name = item.id or name
        request = score_request(item.image, item.prompt, options, f"items[{index}]")
        if request.ByteSize() > MAX_MESSAGE_BYTES - 1024:
            raise TooLarge(
                f"{request.ByteSize()} bytes; the limit is {MAX_MESSAGE_BYTES - 1024}", field=f"items[{index}]"
            )
        return name, request
    except CritiqError as error:
        return name, error


def _as_item(item: Any) -> Item:
    if isinstance(item, Item):
        return item
    # Not a list: a nested list of numbers is no pair.
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], str):
        return Item(item[0], item[1])
    return Item(item)


def _prompt(prompt: str, field: str) -> str:
    if not isinstance(prompt, str):
        raise InvalidArgument(f"{type(prompt).__name__}, where text is due", field=field)
    try:
        prompt.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument(f"no valid Unicode: {error.reason} at position {error.start}", field=field) from error
    return prompt


def _model_path(name: str) -> str:
    return f"/v1/models/{quote(name, safe='')}"


def _version(version: str) -> dict[str, str]:
    return {"version": version} if version else {}


def _unchanged(response: T) -> T:
    return response
