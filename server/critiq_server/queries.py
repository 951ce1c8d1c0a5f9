"""What the operations are asked: pictures, prompts, which model and which of its dimensions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from critiq import types
from critiq.errors import CritiqError, InvalidArgument, NotFound
from critiq_server.engine.demand import Priority
from critiq_server.engine.engine import ServedModel
from critiq_server.images.source import ImageSource, RemoteImage
from critiq_server.runtime.base import TensorSpec
from critiq_server.scoring.judgement import Judgement
from critiq_server.scoring.ranking import check_thresholds
from critiq_server.wording import quoted


@dataclass(frozen=True, slots=True)
class Pinned:
    """The model that answers a request, and the alias that led to it; empty: none did."""

    served: ServedModel
    alias: str = ""


@dataclass(frozen=True, slots=True)
class Target:
    """Which model answers, and what is asked of it; empty values mean the defaults of the contract.

    ``pinned``: the model is chosen already, for a request of several pictures, and kept alive by whoever chose it.
    """

    model: str = ""
    version: str = ""
    dimensions: tuple[str, ...] = ()
    pinned: Pinned | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Query:
    """One picture to score."""

    image: ImageSource | RemoteImage
    prompt: str = ""
    target: Target = Target()
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a batch or stream; a face that could not read it puts the error in the query's place."""

    id: str
    query: Query | CritiqError


@dataclass(frozen=True, slots=True)
class StageSignature:
    """One stage of a served model: which of ``image`` and ``prompt`` it depends on in the end, and its outputs.

    ``outputs`` gives dtype and shape of one item, ``None`` where a length varies.
    """

    model: str
    version: str
    reads: frozenset[str]
    outputs: Mapping[str, TensorSpec]


def signature_of(served: ServedModel, stage: str) -> StageSignature:
    """What a stage of a served model reads and gives. Raises ``NotFound``."""
    manifest, stages = served.model.manifest, served.model.stages
    if stage not in stages:
        raise NotFound(
            f"model {manifest.name!r} has no stage {quoted(stage)}; it has {', '.join(stages)}", field="stage"
        )
    reads, outputs = frozenset(manifest.roots(stage)), stages[stage].runtime.outputs
    return StageSignature(manifest.name, manifest.version, reads, outputs)


def worth_fetching(served: ServedModel, query: Query) -> frozenset[str]:
    """The stages whose outputs scoring the picture will need: those of LMMs, or else all that end in a score.

    Without a prompt, the questions to LMMs that do not quote one. Raises as scoring does, if there are none.
    """
    manifest = served.model.manifest
    names = query.target.dimensions or served.model.judgements
    asked = {
        stage
        for name, judgement in served.model.judgements.items()
        if name in names
        for stage in manifest.lmm_stages(judgement.dimension.stage)
        if query.prompt or "prompt" not in manifest.roots(stage)
    }
    return frozenset(asked or [entry.dimension.stage for entry in dimensions_of(served, query.target, query.prompt)])


def dimensions_of(served: ServedModel, target: Target, prompt: str) -> Sequence[Judgement]:
    """The dimensions that a request asks for, or all that it allows."""
    judgements = served.model.judgements
    if not target.dimensions:
        return [entry for entry in judgements.values() if prompt or not entry.dimension.needs_prompt] or _prompt_needed(
            next(iter(judgements))
        )
    chosen = []
    for position, name in enumerate(target.dimensions):
        field = f"target.dimensions[{position}]"
        if name not in judgements:
            raise NotFound(
                f"model {served.model.manifest.name!r} has no dimension {quoted(name)}; it has {', '.join(judgements)}",
                field=field,
            )
        if name in target.dimensions[:position]:
            raise InvalidArgument(f"{name!r} is named twice", field=field)
        if judgements[name].dimension.needs_prompt and not prompt:
            _prompt_needed(name)
        chosen.append(judgements[name])
    return chosen


def _prompt_needed(dimension: str) -> Sequence[Judgement]:
    raise InvalidArgument(
        f"the dimension {dimension!r} needs the prompt that the picture was made from, and there is none",
        field="prompt",
    )


def ranking_dimension(served: ServedModel, target: Target, prompt: str) -> Judgement:
    """The dimension to rank by: the one that is named, else the first that needs the prompt, else the first."""
    if target.dimensions:
        return dimensions_of(served, target, prompt)[0]
    allowed = dimensions_of(served, target, prompt)
    return next((entry for entry in allowed if entry.dimension.needs_prompt), allowed[0])


def embedding_of(served: ServedModel, name: str) -> tuple[str, str]:
    """The stage and the output that ``name`` (``stage`` or ``stage/output``) means; empty: the model's image encoder.

    That is the first stage that sees the picture, gives a vector and is read by a dimension with a prompt: such an
    encoder looks at what the picture shows. Where there is none, the first that sees the picture and gives a vector;
    an LMM, whose features may be missing, only where nothing else does.

    Raises ``InvalidArgument`` if the model has no such stage or output.
    """
    model = served.model
    vectors = {
        stage: [output for output in outputs if (model.stages[stage].runtime.outputs[output].shape[0] or 0) > 1]
        for stage, outputs in model.vectors.items()
    }
    vectors = {stage: outputs for stage, outputs in vectors.items() if outputs}
    if not vectors:
        raise InvalidArgument(
            f"the model {model.manifest.name!r} has no stage that turns a picture into a vector, so distances between "
            "pictures are not known; leave diversity at 0, or rank by another model",
            field="diversity",
        )
    if not name:
        asked = [entry.dimension for entry in model.judgements.values() if entry.dimension.needs_prompt]
        read = model.plan(frozenset(dimension.stage for dimension in asked)).stages
        encoders = [stage for stage in vectors if model.stages[stage].lmm is None] or list(vectors)
        chosen = next((stage.spec.name for stage in read if stage.spec.name in encoders), encoders[0])
        return chosen, vectors[chosen][0]
    stage, _, output = name.partition("/")
    if stage not in vectors or (output and output not in vectors[stage]):
        known = ", ".join(f"{stage}/{output}" for stage, outputs in vectors.items() for output in outputs)
        raise InvalidArgument(
            f"the model {model.manifest.name!r} has no embedding {quoted(name)}; it has {known}", field="embedding"
        )
    return stage, output or vectors[stage][0]


def threshold_dimensions(
    served: ServedModel, thresholds: Sequence[types.Threshold], ranked_by: Judgement, prompt: str
) -> list[Judgement]:
    """The dimension to rank by, then the others that have thresholds.

    Raises ``NotFound`` or ``InvalidArgument`` if a threshold cannot be compared.
    """
    wanted = {ranked_by.dimension.name: ranked_by}
    for position, threshold in enumerate(thresholds):
        name = threshold.dimension
        if name and name not in wanted:
            try:
                wanted[name] = dimensions_of(served, Target(dimensions=(name,)), prompt)[0]
            except CritiqError as error:
                field = error.field if error.field == "prompt" else f"thresholds[{position}].dimension"
                raise type(error)(error.message, field=field) from error
    check_thresholds(list(wanted.values()), thresholds, ranked_by.dimension.name)
    return list(wanted.values())


def check_unique(ids: Sequence[str]) -> None:
    """Raises ``InvalidArgument`` if two items have one id."""
    seen: dict[str, int] = {}
    for position, item in enumerate(ids):
        if item in seen:
            raise InvalidArgument(
                f"the id {quoted(item)} is used by items {seen[item]} and {position}; ids must be unique",
                field=f"items[{position}].id",
            )
        seen[item] = position


def model_of(items: Sequence[Item]) -> str:
    """The name of the model that the first item asks for."""
    first = items[0].query if items else None
    return first.target.model if isinstance(first, Query) else ""
