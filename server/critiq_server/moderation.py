"""Moderation: a picture is scored in the dimensions that a policy looks at, and the policy decides."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import structlog

from critiq import types
from critiq.errors import CritiqError, FeaturesMissing, Internal, InvalidArgument, NotFound
from critiq_server.bundles.repository import version_order
from critiq_server.engine.engine import ServedModel
from critiq_server.prompts import normalise
from critiq_server.queries import Query, Target
from critiq_server.scoring.moderation_settings import ModerationSettings
from critiq_server.scoring.policies import Policy, decide, lacking
from critiq_server.scoring.policy_files import PolicyError, files_in, read_policy
from critiq_server.service import Service
from critiq_server.wording import quoted

logger = structlog.get_logger("critiq")


class Policies:
    """The policies of one server, by name and version.

    Args:
        policies: the policies, by where they come from.
        default: name of the one that decides where none is named; empty: the only one, if there is one name.

    Raises:
        PolicyError: two have one name and version, or there is no default of that name.
    """

    def __init__(self, policies: Mapping[str, Policy], default: str = "") -> None:
        self._versions: dict[str, dict[str, Policy]] = {}
        sources: dict[tuple[str, str], str] = {}
        for source, policy in policies.items():
            first = sources.setdefault((policy.name, policy.version), source)
            if first != source:
                raise PolicyError(
                    f"{source}: the policy {policy.name!r} version {policy.version!r} is in {first} too; "
                    "give one of them another name or version"
                )
            self._versions.setdefault(policy.name, {})[policy.version] = policy
        for name, versions in self._versions.items():
            self._versions[name] = dict(sorted(versions.items(), key=lambda entry: version_order(entry[0])))
        if default and default not in self._versions:
            raise PolicyError(f"moderation.default: there is no policy {default!r}; known: {self._known()}")
        self.default = default or (next(iter(self._versions)) if len(self._versions) == 1 else "")

    def __iter__(self) -> Iterator[Policy]:
        """By name, each name's newest version last."""
        return (policy for name in sorted(self._versions) for policy in self._versions[name].values())

    def get(self, name: str = "", version: str = "") -> Policy:
        """The newest version of a policy, or the one that is named.

        Raises:
            NotFound: there is no such policy or version, or none at all.
            InvalidArgument: none is named, there are several and none is the default.
        """
        if not self._versions:
            raise NotFound("this server has no policies; its setting moderation.policies names files", field="policy")
        name = name or self.default
        if not name:
            raise InvalidArgument(f"name a policy; there are {self._known()}", field="policy")
        versions = self._versions.get(name)
        if versions is None:
            raise NotFound(f"there is no policy {quoted(name)}; there are {self._known()}", field="policy")
        if version and version not in versions:
            raise NotFound(
                f"the policy {name!r} has no version {quoted(version)}; it has {', '.join(versions)}",
                field="policy_version",
            )
        return versions[version or next(reversed(versions))]

    def describe(self) -> list[types.PolicyInfo]:
        """All of them, by name, each name's newest version last."""
        chosen = self.get() if self.default else None
        return [
            types.PolicyInfo(
                name=policy.name,
                version=policy.version,
                description=policy.description,
                model=policy.model,
                model_version=policy.model_version,
                dimensions=policy.dimensions,
                rules=tuple(rule.name for rule in policy.rules),
                default=policy.default,
                missing=policy.missing,
                is_default=policy is chosen,
            )
            for policy in self
        ]

    def _known(self) -> str:
        return ", ".join(sorted(self._versions))


def load_policies(settings: ModerationSettings) -> Policies:
    """The policies in the files and directories of the settings.

    Raises ``PolicyError`` that names the file for the first one that cannot be used.
    """
    files = [file for path in settings.policies for file in files_in(path)]
    return Policies({str(file): read_policy(file) for file in files}, settings.default)


class Moderation:
    """Scores and decides. Methods raise only ``critiq.errors``."""

    def __init__(self, service: Service, policies: Policies) -> None:
        self.service = service
        self.policies = policies

    async def moderate(
        self, query: Query, policy: str = "", version: str = "", timeout: float | None = None
    ) -> types.Verdict:
        """What a policy (default: the server's) decides about one picture; the query's target is not looked at.

        A score that the model cannot give is left to the policy's ``missing``; a picture that cannot be read, too much
        work, a model that is not loaded and a deadline that has passed are errors, as of ``Service.score``.
        """
        chosen = self.policies.get(policy, version)
        seconds = self.service.settings.limits.timeout_seconds if timeout is None else timeout
        until = asyncio.get_running_loop().time() + seconds
        with self.service.pinned(Target(chosen.model, chosen.model_version), [query.image]) as (target, served):
            query, failures = self._asked(chosen, replace(query, target=target), served)
            try:
                result: types.ScoreResult | None = await self._score(query, until)
            except (FeaturesMissing, Internal) as error:
                result, failed = await self._each(query, error, until)
                failures |= failed
        verdict = decide(chosen, result, failures)
        self.service.metrics.decisions.labels(chosen.name, verdict.decision).inc()
        return verdict

    def check(self) -> None:
        """Raises ``PolicyError`` if a policy is about a model that is unknown, could not be served or lacks a score."""
        self._check_categories()
        for policy in self.policies:
            name = f"the policy {policy.name!r} version {policy.version!r}"
            try:
                models = self.service.registry.meant(policy.model, policy.model_version)
            except CritiqError as error:
                raise PolicyError(f"{name}: {error.message}") from error
            for model in models:
                if model.state == "failed":
                    raise PolicyError(f"{name}: its model {model.name!r} is not served: {model.state_reason}")
                if model.state == "ready":
                    if problem := lacking(policy, self.service.registry.manifest(model.name, model.version)):
                        raise PolicyError(problem)
                else:
                    logger.warning("a policy's model is not loaded", policy=policy.name, model=model.name)

    def _check_categories(self) -> None:
        judged = {dimension for policy in self.policies for dimension in policy.dimensions}
        for name, dimension in self.service.settings.moderation.openai.categories.items():
            if dimension not in judged:
                raise PolicyError(
                    f"moderation.openai.categories: {name!r} stands for the dimension {dimension!r}, which no policy "
                    f"looks at; they look at {', '.join(sorted(judged)) or 'none'}"
                )

    def needing_prompt(self, policy: Policy) -> Sequence[str]:
        """The dimensions of a policy that need the prompt. Raises ``NotFound`` or ``ModelNotLoaded``."""
        with self.service.registry.lease(policy.model, policy.model_version) as served:
            return _needing_prompt(policy, served)

    def _asked(self, policy: Policy, query: Query, served: ServedModel) -> tuple[Query, dict[str, str]]:
        """The query for the policy's dimensions, without those that cannot be asked for, and why they cannot.

        If none is left, every dimension that the prompt allows is asked for: the picture must be read in any case.
        """
        prompt = normalise(query.prompt, self.service.settings.limits.prompt_bytes)
        reason = "it needs the prompt that the picture was made from, and there is none"
        failures = {} if prompt else dict.fromkeys(_needing_prompt(policy, served), reason)
        dimensions = tuple(name for name in policy.dimensions if name not in failures)
        return replace(query, target=replace(query.target, dimensions=dimensions)), failures

    async def _score(self, query: Query, until: float) -> types.ScoreResult:
        left = max(0.0, until - asyncio.get_running_loop().time())
        return await self.service.score(query, left, operation="moderate")

    async def _each(
        self, query: Query, error: FeaturesMissing | Internal, until: float
    ) -> tuple[types.ScoreResult | None, dict[str, str]]:
        """What can be scored if the dimensions are asked for one by one, and why the others cannot."""
        names = query.target.dimensions
        if len(names) < 2:
            return None, dict.fromkeys(names, error.message)
        found: list[types.ScoreResult] = []
        failures = {}
        for name in names:
            one = replace(query, target=replace(query.target, dimensions=(name,)))
            try:
                found.append(await self._score(one, until))
            except (FeaturesMissing, Internal) as reason:
                failures[name] = reason.message
        return _together(found), failures


def _needing_prompt(policy: Policy, served: ServedModel) -> Sequence[str]:
    judgements = served.model.judgements
    return [name for name in policy.dimensions if name in judgements and judgements[name].dimension.needs_prompt]


def _together(results: Sequence[types.ScoreResult]) -> types.ScoreResult | None:
    """The results of several dimensions of one picture as one."""
    if not results:
        return None
    image = replace(results[0].image, resized=any(result.image.resized for result in results))
    scores = tuple(score for result in results for score in result.scores)
    return types.ScoreResult(scores, image, next((result.prompt for result in results if result.prompt), None))
