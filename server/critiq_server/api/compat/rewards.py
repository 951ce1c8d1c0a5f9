"""Rewards by name: what the faces of trainers' clients ask for, and how it is got from the service."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from critiq import types
from critiq.errors import (
    CritiqError,
    DeadlineExceeded,
    FailedPrecondition,
    FeaturesMissing,
    InvalidArgument,
    ModelNotLoaded,
    NotFound,
)
from critiq_server.images.source import ImageSource
from critiq_server.queries import Item, Query, Target
from critiq_server.service import Service
from critiq_server.settings import RewardSettings
from critiq_server.wording import quoted


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture with its prompt, or the error of reading it."""

    image: ImageSource | CritiqError
    prompt: str = ""


Outcome = float | CritiqError


class Rewards:
    """The rewards in the settings; a name that is not there means that dimension of the default model, calibrated."""

    def __init__(self, service: Service, rewards: Mapping[str, RewardSettings], timeout: float) -> None:
        self.service = service
        self._rewards = rewards
        self._timeout = timeout

    @property
    def request_bytes(self) -> int:
        return self.service.settings.limits.request_bytes

    def names(self) -> list[str]:
        """Every reward that can be asked for now."""
        return [name for name in self._known() if self.ready(name)]

    def ready(self, name: str) -> bool:
        """Whether the reward's model is served and has its dimension."""
        wanted = self.settings(name)
        try:
            model = self.service.models.get(wanted.model, wanted.version)
        except CritiqError:
            return False
        return model.state == "ready" and any(entry.name == wanted.dimension for entry in model.dimensions)

    def check(self, names: Iterable[str]) -> None:
        """Raises ``NotFound`` for the first name that stands for nothing, whether or not its model is loaded."""
        known = self._known()
        for name in names:
            if name not in known:
                raise NotFound(f"there is no reward {quoted(name)}; there are {', '.join(known)}", field="reward")

    def _known(self) -> list[str]:
        default = [model for model in self.service.models.list() if model.is_default]
        dimensions = [dimension.name for model in default for dimension in model.dimensions]
        return list(dict.fromkeys([*self._rewards, *dimensions]))

    def settings(self, name: str) -> RewardSettings:
        return self._rewards.get(name) or RewardSettings(dimension=name)

    def versions(self, name: str) -> frozenset[str]:
        """The model versions that may answer for a reward: several behind an alias; raises ``NotFound``."""
        wanted = self.settings(name)
        return frozenset(model.version for model in self.service.registry.meant(wanted.model, wanted.version))

    async def score_one(self, name: str, samples: Sequence[Sample]) -> list[float]:
        """One reward for each sample. Raises the first sample's error, one that may pass before one that lasts."""
        self.check([name])
        outcomes = [outcome[name] for outcome in await self.score([name], samples)]
        errors = [
            outcome.within(f"images[{index}]")
            for index, outcome in enumerate(outcomes)
            if isinstance(outcome, CritiqError)
        ]
        if errors:
            raise next((error for error in errors if may_pass(error)), errors[0])
        return [outcome for outcome in outcomes if isinstance(outcome, float)]

    async def score(self, names: Sequence[str], samples: Sequence[Sample]) -> list[dict[str, Outcome]]:
        """Every named reward of each sample, in the order of ``samples``.

        Raises what makes the call as a whole impossible: nothing or too much in it, or too much work under way.
        """
        outcomes: list[dict[str, Outcome]] = [{} for _ in samples]
        by_model: dict[tuple[str, str], list[str]] = {}
        for name in names:
            wanted = self.settings(name)
            by_model.setdefault((wanted.model, wanted.version), []).append(name)
        for (model, version), asked in by_model.items():
            dimensions = tuple(dict.fromkeys(self.settings(name).dimension for name in asked))
            target = Target(model, version, dimensions)
            items = [Item(str(index), _query(sample, target)) for index, sample in enumerate(samples)]
            results = await self.service.score_batch(items, self._timeout)
            for outcome, result in zip(outcomes, results, strict=True):
                for name in asked:
                    outcome[name] = _reward(result, self.settings(name))
        return outcomes


def may_pass(error: CritiqError) -> bool:
    """Whether the same request may succeed a little later."""
    if isinstance(error, ModelNotLoaded):
        return error.retry_after is not None  # without a hint nobody is loading it
    return error.retryable or isinstance(error, DeadlineExceeded)


def samples_of(images: Sequence[ImageSource | CritiqError], prompts: Sequence[str] | None) -> list[Sample]:
    """Raises ``InvalidArgument`` if there are prompts, but not as many as pictures."""
    if prompts is None:
        return [Sample(image) for image in images]
    if len(prompts) != len(images):
        raise InvalidArgument(
            f"{len(images)} pictures with {len(prompts)} prompts; send one prompt for each picture", field="prompts"
        )
    return [Sample(image, prompt) for image, prompt in zip(images, prompts, strict=True)]


def _query(sample: Sample, target: Target) -> Query | CritiqError:
    return sample.image if isinstance(sample.image, CritiqError) else Query(sample.image, sample.prompt, target)


def _reward(result: types.ItemResult, wanted: RewardSettings) -> Outcome:
    """The value on the wanted scale, larger always better; an error where there is none that compares with others."""
    try:
        score = result.unwrap()[wanted.dimension]
    except CritiqError as error:
        return error
    if score.degraded:
        return FeaturesMissing(
            f"the score for {score.dimension!r} is degraded and does not compare with full ones: "
            f"{score.degraded_reason}"
        )
    if wanted.scale == "raw":
        return score.raw if score.direction == "higher_is_better" else -score.raw
    value = score.calibrated if wanted.scale == "calibrated" else score.percentile
    if value is None:
        return FailedPrecondition(
            f"model {score.model!r} gives {score.dimension!r} no {wanted.scale} value; set the reward's scale to raw"
        )
    return value
