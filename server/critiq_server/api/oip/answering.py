"""What both faces of the Open Inference Protocol do with a request: read it, ask the service, make tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import orjson
from numpy.typing import NDArray

from critiq import types
from critiq.errors import CritiqError, FeaturesMissing, InvalidArgument, NotFound
from critiq_server.api.oip import models
from critiq_server.api.oip.tensors import DATATYPES, Items, Tensor, read_items
from critiq_server.engine.demand import Priority
from critiq_server.features.records import Features
from critiq_server.images.source import ImageSource, RawImage
from critiq_server.queries import Item, Query, Target
from critiq_server.service import Service
from critiq_server.wording import quoted

_SCALES = ("raw", "calibrated", "percentile")
_NO_PICTURE = RawImage(b"", ())
"""In the query of a stage that sees no picture."""


@dataclass(frozen=True, slots=True)
class Request:
    """A ModelInfer request of either face. ``model`` is ``NAME`` or ``NAME/STAGE``; no ``outputs`` means all."""

    model: str
    version: str
    id: str
    parameters: Mapping[str, Any]
    inputs: Sequence[Tensor]
    outputs: Sequence[str]


@dataclass(frozen=True, slots=True)
class Output:
    name: str
    values: NDArray[np.generic]
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def datatype(self) -> str:
        return DATATYPES[self.values.dtype.name]


@dataclass(frozen=True, slots=True)
class Answer:
    """``version`` is the one that answered; ``parameters`` hold the errors of failed items, if NaN was asked for."""

    model: str
    version: str
    id: str
    parameters: Mapping[str, str]
    outputs: Sequence[Output]


@dataclass(frozen=True, slots=True)
class _Options:
    """The request's parameters. ``timeout`` is in seconds."""

    scale: Literal["raw", "calibrated", "percentile"]
    fill: bool
    accept_degraded: bool
    priority: Priority
    timeout: float | None


async def infer(service: Service, request: Request, timeout: float | None) -> Answer:
    """Answers a request: a model's dimensions, or a stage's outputs.

    Args:
        timeout: seconds until the transport's deadline; ``None``: it has none.

    Raises:
        CritiqError: what is wrong with the request as a whole; or, unless NaN was asked for, the error of the first
            item that failed, its place in the request in front.
    """
    options = _options(request.parameters, timeout)
    name, slash, stage = request.model.partition("/")
    with models.in_its_words():
        if slash:
            return await _stage_outputs(service, request, name, stage, options)
        return await _scores(service, request, name, options)


async def _scores(service: Service, request: Request, name: str, options: _Options) -> Answer:
    with service.registry.lease(name, request.version):
        pass  # whether there is such a model is said before anything about what was sent to it
    items = read_items(request.inputs, frozenset(("image", "prompt")), service.settings.limits.batch_items)
    pictures = [image for image in items.images if isinstance(image, ImageSource)]
    with service.pinned(Target(name, request.version), pictures) as (target, served):
        model = served.model.manifest
        known = [dimension.name for dimension in model.dimensions]
        prompted = any(prompt != "" for prompt in items.prompts)
        possible = [dimension.name for dimension in model.dimensions if prompted or not dimension.needs_prompt]
        wanted = _wanted(request, known) or possible or known
        queries = _queries(items, replace(target, dimensions=tuple(wanted)), options.priority)
        results = await service.score_batch([Item(str(at), query) for at, query in enumerate(queries)], options.timeout)
    outcomes = [_checked(result, options) for result in results]
    errors = _errors(outcomes, items, fill=options.fill)
    outputs = []
    for dimension in wanted:
        column = [_value(outcome, dimension, options) for outcome in outcomes]
        degraded = [at for at, outcome in enumerate(outcomes) if _is_degraded(outcome, dimension)]
        notes = {"degraded": ",".join(map(str, degraded))} if degraded else {}
        outputs.append(Output(dimension, np.array(column, np.float32), notes))
    return Answer(model.name, model.version, request.id, errors, outputs)


async def _stage_outputs(service: Service, request: Request, name: str, stage: str, options: _Options) -> Answer:
    if "scale" in request.parameters or "accept_degraded" in request.parameters:
        raise InvalidArgument("scale and accept_degraded are for models; a stage's outputs are not scores")
    signature = service.stage(name, request.version, stage)
    items = read_items(request.inputs, signature.reads, service.settings.limits.batch_items)
    wanted = _wanted(request, list(signature.outputs)) or list(signature.outputs)
    target = Target(signature.model, signature.version)
    queries = _queries(items, target, options.priority)
    outcomes = await service.features(target, stage, queries, options.timeout)
    # Only an item that succeeded tells the shape of the others.
    some = any(not isinstance(outcome, CritiqError) for outcome in outcomes)
    errors = _errors(outcomes, items, fill=options.fill and some)
    outputs = [Output(output, _stacked(output, outcomes)) for output in wanted]
    return Answer(f"{signature.model}/{stage}", signature.version, request.id, errors, outputs)


def _options(parameters: Mapping[str, Any], timeout: float | None) -> _Options:
    known = ("scale", "on_error", "accept_degraded", "priority", "timeout")
    for name in parameters:
        if name not in known:
            raise InvalidArgument(
                f"the parameter {quoted(name)} is unknown here; known: {', '.join(known)}", field="parameters"
            )
    scale, on_error = parameters.get("scale", "raw"), parameters.get("on_error", "fail")
    if scale not in _SCALES:
        raise InvalidArgument(
            f"{_shown(scale)} is no scale; use raw, calibrated or percentile", field="parameters.scale"
        )
    if on_error not in ("fail", "nan"):
        raise InvalidArgument(f"{_shown(on_error)} is unknown; use fail or nan", field="parameters.on_error")
    accept_degraded = parameters.get("accept_degraded", False)
    if not isinstance(accept_degraded, bool):
        raise InvalidArgument(f"{_shown(accept_degraded)} is not true or false", field="parameters.accept_degraded")
    microseconds, level = _natural(parameters, "timeout"), _natural(parameters, "priority")
    if microseconds:
        timeout = min(microseconds / 1e6, float("inf") if timeout is None else timeout)
    priority = Priority.BULK if level > 1 else Priority.INTERACTIVE
    return _Options(scale, on_error == "nan", accept_degraded, priority, timeout)


def _natural(parameters: Mapping[str, Any], name: str) -> int:
    value = parameters.get(name, 0)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise InvalidArgument(f"{_shown(value)} is not a whole number from 0 on", field=f"parameters.{name}")
    return value


def _shown(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else f"{value!r:.80}"


def _wanted(request: Request, known: Sequence[str]) -> list[str]:
    for at, name in enumerate(request.outputs):
        if name not in known:
            raise NotFound(
                f"{quoted(request.model)} has no output {quoted(name)}; it has {', '.join(known)}",
                field=f"outputs[{at}]",
            )
        if name in request.outputs[:at]:
            raise InvalidArgument(f"{name!r} is asked for twice", field=f"outputs[{at}]")
    return list(request.outputs)


def _queries(items: Items, target: Target, priority: Priority) -> list[Query | CritiqError]:
    queries: list[Query | CritiqError] = []
    for image, prompt in zip(items.images, items.prompts, strict=True):
        if isinstance(image, CritiqError):
            queries.append(image)
        elif isinstance(prompt, CritiqError):
            queries.append(prompt)
        else:
            source: ImageSource = _NO_PICTURE if image is None else image
            queries.append(Query(source, prompt, target, priority))
    return queries


def _checked(result: types.ItemResult, options: _Options) -> types.ScoreResult | CritiqError:
    """The item's scores, or why they cannot be given on the scale asked for."""
    if result.result is None:
        return result.error or InvalidArgument("the item has no outcome")
    for score in result.result:
        if score.degraded and not options.accept_degraded:
            return FeaturesMissing(
                f"{score.dimension!r} could only be judged without features that are missing, on a scale of its own; "
                f"set the parameter accept_degraded to get such values: {score.degraded_reason}",
                field="image",
            )
        if getattr(score, options.scale) is None:
            return InvalidArgument(
                f"the model gives no {options.scale} value of {score.dimension!r}{' here' * score.degraded}; use the "
                "scale raw",
                field="target.scale",
            )
    return result.result


def _errors(outcomes: Sequence[Any], items: Items, *, fill: bool) -> dict[str, str]:
    """The answer's parameters: the errors by item, as JSON. Raises the first of them unless they become NaN."""
    placed = {
        at: _placed(outcome, at, items) for at, outcome in enumerate(outcomes) if isinstance(outcome, CritiqError)
    }
    if not placed:
        return {}
    if fill:
        return {"errors": orjson.dumps({str(at): str(error) for at, error in placed.items()}).decode()}
    first = next(iter(placed.values()))
    more = f" ({len(placed)} of {len(outcomes)} items failed)" if len(placed) > 1 else ""
    raise type(first)(first.message + more, field=first.field, retry_after=first.retry_after)


def _placed(error: CritiqError, at: int, items: Items) -> CritiqError:
    """The error with the element of the request to blame for its field."""
    if error.field in models.RENAMED:
        return error
    if error.field == "prompt" or not items.picture:
        place = f"prompt[{0 if items.one_prompt else at}]"
    else:
        place = f"{items.picture}[{at}]"
    return type(error)(error.message, field=place, retry_after=error.retry_after)


def _value(outcome: types.ScoreResult | CritiqError, dimension: str, options: _Options) -> float:
    if isinstance(outcome, CritiqError):
        return float("nan")
    return float(getattr(outcome[dimension], options.scale))


def _is_degraded(outcome: types.ScoreResult | CritiqError, dimension: str) -> bool:
    return not isinstance(outcome, CritiqError) and outcome[dimension].degraded


def _stacked(output: str, outcomes: Sequence[Features | CritiqError]) -> NDArray[np.generic]:
    """One output of all items, at least one of which succeeded; items that failed are NaN."""
    arrays = {at: outcome[output] for at, outcome in enumerate(outcomes) if not isinstance(outcome, CritiqError)}
    first, model = next(iter(arrays.items()))
    for at, array in arrays.items():
        if array.shape != model.shape:
            raise InvalidArgument(
                f"{output!r} has the shape {list(model.shape)} for item {first} and {list(array.shape)} for item {at}, "
                "which makes no tensor; ask for other outputs, or for these items one by one",
                field="outputs",
            )
    if len(arrays) < len(outcomes) and not np.issubdtype(model.dtype, np.floating):
        raise InvalidArgument(
            f"{output!r} holds {model.dtype.name}, which has no NaN; leave out on_error", field="parameters.on_error"
        )
    blank = partial(np.full, model.shape, np.nan, model.dtype)
    return np.stack([arrays[at] if at in arrays else blank() for at in range(len(outcomes))])
