"""What a call returns: the messages of ``proto/critiq/v1`` (their comments are the reference) as Python values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self, SupportsIndex, cast, get_args, overload

from critiq._notebook import Shown, frame
from critiq.errors import CritiqError, InvalidArgument

if TYPE_CHECKING:
    import pandas

Direction = Literal["higher_is_better", "lower_is_better"]
Scope = Literal["absolute", "within_prompt"]
Preference = Literal["first", "second", "tie"]
Priority = Literal["interactive", "bulk"]
State = Literal["available", "loading", "ready", "failed"]
Decision = Literal["accept", "review", "reject"]
"""From the mildest to the most severe."""
Scale = Literal["raw", "calibrated", "percentile"]
ReasonKind = Literal["below", "above", "between", "flag", "missing"]
Flag = Literal[
    "degraded",
    "prompt_truncated",
    "resized",
    "first_frame_only",
    "orientation_applied",
    "alpha_flattened",
    "depth_scaled",
    "colour_converted",
]
"""What reports say: on the scores (degraded), the prompt, and the picture (as in :class:`ImageReport`)."""


@dataclass(frozen=True, slots=True)
class Score:
    """One judgement of one picture.

    ``raw`` is the model's own value (range in :class:`Dimension`); ``calibrated`` is 0 (worst) .. 1 (best) and
    ``percentile`` 0..100 within the reference population, both ``None`` where the bundle has none. A ``degraded`` score
    is of the bundle's fallback head, which does without what the reason says is missing: its ``raw`` does not compare
    with those of scores that are not.
    """

    dimension: str
    raw: float
    calibrated: float | None
    percentile: float | None
    direction: Direction
    scope: Scope
    model: str
    model_version: str
    from_store: bool
    degraded: bool = False
    degraded_reason: str = ""


@dataclass(frozen=True, slots=True)
class ImageReport:
    """What was done to the picture before the model saw it; sizes in pixels after the orientation was applied."""

    format: str
    width: int
    height: int
    orientation_applied: bool = False
    alpha_flattened: bool = False
    depth_scaled: bool = False
    colour_converted: bool = False
    first_frame_only: bool = False
    resized: bool = False


@dataclass(frozen=True, slots=True)
class PromptReport:
    """Tokens of the whole prompt, tokens that the model reads at the most, and whether it was cut."""

    token_count: int
    token_limit: int
    truncated: bool


@dataclass(frozen=True, slots=True)
class ScoreResult(Shown):
    """All scores of one picture. ``result["visual_quality"]`` is the :class:`Score` of that dimension."""

    scores: tuple[Score, ...]
    image: ImageReport
    prompt: PromptReport | None = None

    def __getitem__(self, dimension: str) -> Score:
        for score in self.scores:
            if score.dimension == dimension:
                return score
        raise KeyError(f"no score for {dimension!r}; there are {[score.dimension for score in self.scores]}")

    def __iter__(self) -> Iterator[Score]:
        return iter(self.scores)


@dataclass(frozen=True, slots=True)
class ItemResult(Shown):
    """The answer to one item of a batch or stream: either ``result`` or ``error`` is set."""

    id: str
    result: ScoreResult | None = None
    error: CritiqError | None = None

    def unwrap(self) -> ScoreResult:
        """The result; raises the item's error if it has none."""
        if self.result is None:
            raise self.error if self.error is not None else ValueError(f"item {self.id!r} has no outcome")
        return self.result


class Results(list[ItemResult]):
    """The answers to the items of a batch, in their order: a list, with more to see in a notebook."""

    @overload
    def __getitem__(self, place: SupportsIndex) -> ItemResult: ...
    @overload
    def __getitem__(self, place: slice) -> Results: ...
    def __getitem__(self, place: SupportsIndex | slice) -> ItemResult | Results:
        return Results(super().__getitem__(place)) if isinstance(place, slice) else super().__getitem__(place)

    def to_dicts(self) -> list[dict[str, Any]]:
        """Each answer as :meth:`ItemResult.to_dict` gives it."""
        return [entry.to_dict() for entry in self]

    def to_pandas(self) -> pandas.DataFrame:
        """A row for each item: its id, the calibrated value, percentile and raw value of each dimension, its error.

        Raises:
            ImportError: pandas is not installed.
        """
        return frame(self)

    def _repr_html_(self) -> str:
        from critiq._notebook_html import items

        return items(self)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A value that a picture needs to be ranked; an empty ``dimension`` is the one that is ranked by.

    ``at_least`` is in the unit of ``scale``: calibrated 0..1, percentile 0..100, raw as in :class:`Dimension`. A raw
    value of a dimension where lower is better must be at most that.
    """

    at_least: float
    dimension: str = ""
    scale: Scale = "calibrated"

    @classmethod
    def parse(cls, text: str) -> Self:
        """``dimension:scale=number``, for instance ``visual_quality:percentile=20``; the dimension may be left out.

        Raises:
            InvalidArgument: it is not of that form.
        """
        place, equals, number = text.rpartition("=")
        dimension, _, scale = place.rpartition(":")
        try:
            if equals and scale.strip() in get_args(Scale):
                return cls(float(number), dimension.strip(), cast(Scale, scale.strip()))
        except ValueError:
            pass
        scales = ", ".join(get_args(Scale))
        raise InvalidArgument(
            f"{text[:80]!r} is no threshold; write DIMENSION:SCALE=NUMBER, for instance visual_quality:percentile=20 "
            f"(scales: {scales})",
            field="thresholds",
        )


@dataclass(frozen=True, slots=True)
class MissedThreshold:
    """A threshold that a picture does not reach; ``value`` is ``None`` if it has none on this scale."""

    dimension: str
    scale: Scale
    at_least: float
    value: float | None = None


@dataclass(frozen=True, slots=True)
class RankedImage:
    """``index`` is the picture's position in the request, from 0; ``rank`` is 1 for the best, 0 if it is not ranked.

    A picture without a rank has an ``error``, or a ``reason``: ``missed`` are the thresholds that it does not reach.
    Where ``similar_to`` (a position in the request) is set, the picture was placed behind that one, or left out, for
    its ``similarity`` (cosine, -1..1) to it; by score alone it would stand further ahead. ``others`` are its scores in
    the other dimensions that have thresholds.
    """

    index: int
    rank: int
    score: Score | None = None
    error: CritiqError | None = None
    others: tuple[Score, ...] = ()
    missed: tuple[MissedThreshold, ...] = ()
    similar_to: int | None = None
    similarity: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RankResult(Shown):
    """The ranked pictures, best first; then those left out for similarity, below a threshold, and without a score."""

    dimension: str
    ranking: tuple[RankedImage, ...]


@dataclass(frozen=True, slots=True)
class DimensionComparison:
    """``tie``: the raw values differ by no more than the dimension's tolerance."""

    dimension: str
    preference: Preference
    first: Score
    second: Score


@dataclass(frozen=True, slots=True)
class CompareResult(Shown):
    """Two pictures compared in every dimension that both could be scored in."""

    comparisons: tuple[DimensionComparison, ...]
    first_image: ImageReport
    second_image: ImageReport
    prompt: PromptReport | None = None


@dataclass(frozen=True, slots=True)
class PrefetchResult:
    """Pictures taken on, and those that were not, each with its error."""

    accepted: int
    refused: tuple[ItemResult, ...] = ()


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a policy decided: one condition that held.

    ``rule`` is the policy's rule, empty if a score is ``missing``; ``code`` its reason for machines, ``message`` for
    people. ``value`` of ``dimension`` on ``scale`` is below or above ``threshold``, or between ``threshold`` and
    ``upper``, both included; or ``flag`` is set. What does not apply is empty or ``None``.
    """

    rule: str
    decision: Decision
    code: str
    message: str
    kind: ReasonKind
    dimension: str = ""
    scale: Scale | None = None
    value: float | None = None
    threshold: float | None = None
    upper: float | None = None
    flag: Flag | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a moderation policy says about one picture.

    ``reasons`` has the most severe first, and is empty where no rule spoke: then the policy's default holds. ``scores``
    are those that the policy looked at; ``image`` is ``None`` if none could be had.
    """

    decision: Decision
    reasons: tuple[Reason, ...]
    policy: str
    policy_version: str
    scores: tuple[Score, ...] = ()
    image: ImageReport | None = None
    prompt: PromptReport | None = None


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    """A moderation policy of the server: the dimensions that it looks at, of which model, and what else it decides.

    ``default`` holds where no rule speaks, ``missing`` where a score is not there. An empty ``model`` or
    ``model_version`` means the server's default model or the newest loaded version.
    """

    name: str
    version: str
    description: str
    model: str
    model_version: str
    dimensions: tuple[str, ...]
    rules: tuple[str, ...]
    default: Decision
    missing: Decision
    is_default: bool


@dataclass(frozen=True, slots=True)
class Dimension:
    """What a score of this dimension means; ``minimum`` and ``maximum`` bound raw values, ``None`` where unbounded."""

    name: str
    title: str
    description: str
    minimum: float | None
    maximum: float | None
    direction: Direction
    scope: Scope
    needs_prompt: bool
    tolerance: float
    reference_population: str = ""
    reference_count: int = 0
    reference_quantiles: tuple[float, ...] = ()
    has_fallback: bool = False


@dataclass(frozen=True, slots=True)
class StageInfo:
    """One stage of a model's graph; ``provider`` and ``digest`` are empty while the model is not loaded.

    The last three are those of a stage that asks a large multimodal model: its name, the id of the question, and what
    happens to a feature that is not stored (``compute``, ``remote`` or ``stored``: it is refused).
    """

    name: str
    runtime: str
    provider: str
    max_batch: int
    digest: str
    cached: bool
    lmm: str = ""
    instruction: str = ""
    on_miss: str = ""


@dataclass(frozen=True, slots=True)
class Licence:
    """Licences of a model's code, weights and training data."""

    code: str
    weights: str
    data: str


@dataclass(frozen=True, slots=True)
class Processes:
    """Of how many serving processes of one machine an answer tells, and the numbers of those that did not answer."""

    answered: int
    of: int
    missing: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Model:
    """One version of one model; ``aliases`` are the names of those that point at it."""

    name: str
    version: str
    family: str
    title: str
    description: str
    state: State
    state_reason: str
    is_default: bool
    dimensions: tuple[Dimension, ...]
    stages: tuple[StageInfo, ...]
    licence: Licence
    aliases: tuple[str, ...] = ()
