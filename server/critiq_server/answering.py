"""What one query comes to: its picture is fetched and decoded, its stages evaluated, its scores made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import TypeVar

from critiq import types
from critiq.errors import NotFound
from critiq_server.engine.demand import Call, Priority
from critiq_server.engine.engine import Engine, Evaluation, ServedModel
from critiq_server.engine.pictures import Darkroom, Picture
from critiq_server.features.records import Features
from critiq_server.images.remote import RemotePictures
from critiq_server.images.source import ImageSource, RemoteImage
from critiq_server.images.views import resizes
from critiq_server.prompts import normalise
from critiq_server.queries import Pinned, Query, Target, dimensions_of, worth_fetching
from critiq_server.registry import Registry
from critiq_server.routing.keys import key_of
from critiq_server.scoring.diversity import Embedding, checked
from critiq_server.scoring.drift import DriftMonitor
from critiq_server.scoring.judgement import Judgement
from critiq_server.settings import Settings
from critiq_server.telemetry.metrics import Metrics

T = TypeVar("T")


class Answering:
    """Answers single queries. Methods raise ``critiq.errors``; when to stop, and who waits, is the caller's concern."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        engine: Engine,
        darkroom: Darkroom,
        metrics: Metrics,
        remote: RemotePictures,
        drift: DriftMonitor,
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._engine = engine
        self._darkroom = darkroom
        self._degradations = metrics.degraded
        self._remote = remote
        self._drift = drift
        # prometheus_client looks labels up under a lock; their values are few.
        self._scores = cache(metrics.scores.labels)
        self._routed = cache(metrics.routed.labels)
        self.on_answer: Callable[[str, ImageSource, str, types.ScoreResult], None] | None = None
        """Told the alias, picture, prompt and scores of every answer that an alias led to."""

    @contextmanager
    def pinned(self, target: Target, pictures: Sequence[ImageSource | RemoteImage]) -> Iterator[Pinned]:
        """The model that answers a request, chosen by the registry and kept alive inside the ``with`` block.

        Args:
            pictures: what tells the request from others, where an alias has several targets and the caller sent no key.

        Raises:
            NotFound, ModelNotLoaded, InvalidArgument: as of ``Registry.lease``.
        """
        if target.pinned is not None:
            yield target.pinned
            return
        route = self._registry.route(target.model, target.version, lambda: key_of(map(_content, pictures)))
        with self._registry.lease_of(route) as served:
            yield Pinned(served, route.alias)

    async def score(self, query: Query, call: Call) -> types.ScoreResult:
        """The scores of one picture."""
        return (await self._evaluated(query, call))[0]

    async def candidate(
        self, embedding: tuple[str, str] | None, query: Query, call: Call
    ) -> tuple[types.ScoreResult, Embedding | None]:
        """A picture's scores and its embedding (stage and output, if one is wanted), of one evaluation."""
        if embedding is None:
            return await self.score(query, call), None
        stage, output = embedding
        result, evaluation = await self._evaluated(query, call, frozenset([stage]))
        if stage in evaluation.unanswered:
            raise evaluation.unanswered[stage]
        return result, checked(evaluation.values[stage][output], stage)

    async def features(self, stage: str, query: Query, call: Call) -> Features:
        """The outputs of one stage."""
        return await self._with_picture(query, lambda image: self._stage_outputs(stage, query, image, call))

    def check_prefetch(self, query: Query) -> Query:
        """``query`` with bulk priority; raises what can be said against it without decoding its picture."""
        if isinstance(query.image, RemoteImage):
            self._remote.check(query.image.url)
        else:
            self._darkroom.picture(query.image)
        prompt = normalise(query.prompt, self._settings.limits.prompt_bytes)
        query = replace(query, prompt=prompt, priority=Priority.BULK)
        with self.pinned(query.target, [query.image]) as pinned:
            worth_fetching(pinned.served, query)
        return query

    async def prefetch(self, query: Query, call: Call) -> None:
        """Computes what is worth keeping of a query that :meth:`check_prefetch` has passed."""
        await self._with_picture(query, lambda image: self._kept_outputs(query, image, call))

    async def _with_picture(self, query: Query, work: Callable[[ImageSource], Awaitable[T]]) -> T:
        """``work`` with the picture at hand: one that is named by its URL is fetched first."""
        if not isinstance(query.image, RemoteImage):
            return await work(query.image)
        async with self._remote.fetched(query.image.url, bulk=query.priority is Priority.BULK) as image:
            return await work(image)

    async def _evaluated(
        self, query: Query, call: Call, further: frozenset[str] = frozenset()
    ) -> tuple[types.ScoreResult, Evaluation]:
        """The scores, and what they are made of; the stages called ``further`` are evaluated beside them."""
        return await self._with_picture(query, lambda image: self._judged(query, image, call, further))

    async def _judged(
        self, query: Query, image: ImageSource, call: Call, further: frozenset[str]
    ) -> tuple[types.ScoreResult, Evaluation]:
        prompt = normalise(query.prompt, self._settings.limits.prompt_bytes)
        with self.pinned(query.target, [image]) as pinned:
            served = pinned.served
            judgements = dimensions_of(served, query.target, prompt)
            picture = self._darkroom.picture(image)
            result, evaluation = await self._scored(served, judgements, picture, prompt, call, further)
            self._count_scores(result.scores)
            self._drift.observe(served.model.manifest, result.scores, picture.report, len(image.data), len(prompt))
            if pinned.alias:
                self._routed(pinned.alias, served.model.manifest.name, served.model.manifest.version).inc()
                if self.on_answer is not None:
                    self.on_answer(pinned.alias, image, prompt, result)
            return result, evaluation

    async def shadow(
        self, served: ServedModel, answered: types.ScoreResult, image: ImageSource, prompt: str, call: Call
    ) -> types.ScoreResult:
        """Scores of a picture that was answered before, in the same dimensions as far as the model has them.

        They are counted nowhere. Raises ``NotFound`` if it has none of them.
        """
        known = {
            name: judgement
            for name, judgement in served.model.judgements.items()
            if prompt or not judgement.dimension.needs_prompt
        }
        judgements = [known[score.dimension] for score in answered if score.dimension in known]
        if not judgements:
            manifest = served.model.manifest
            raise NotFound(f"{manifest.name}:{manifest.version} has none of the dimensions that were asked for")
        return (await self._scored(served, judgements, self._darkroom.picture(image), prompt, call))[0]

    async def _scored(
        self,
        served: ServedModel,
        judgements: Sequence[Judgement],
        picture: Picture,
        prompt: str,
        call: Call,
        further: frozenset[str] = frozenset(),
    ) -> tuple[types.ScoreResult, Evaluation]:
        outputs = frozenset(judgement.dimension.stage for judgement in judgements)
        evaluation = await self._engine.evaluate(served, outputs | further, picture, prompt, call)
        unanswered = [entry for entry in judgements if entry.dimension.stage in evaluation.unanswered]
        degraded = await self._degraded(served, unanswered, evaluation, picture, prompt, call)
        scores = []
        for judgement in judgements:
            dimension = judgement.dimension
            if dimension.name in degraded:
                scores.append(degraded[dimension.name])
                continue
            raw = float(evaluation.values[dimension.stage][dimension.output].item())
            scores.append(judgement.score(raw, from_store=dimension.stage in evaluation.from_store))
        report = picture.report
        views = served.model.plan(outputs).views
        if any(resizes(view, report.height, report.width) for view in views):
            report = replace(report, resized=True)
        return types.ScoreResult(tuple(scores), report, evaluation.prompt), evaluation

    async def _degraded(
        self,
        served: ServedModel,
        unanswered: Sequence[Judgement],
        full: Evaluation,
        picture: Picture,
        prompt: str,
        call: Call,
    ) -> dict[str, types.Score]:
        """What the fallback heads say in place of dimensions that lack an LMM's features.

        Raises why the features are missing, if one of those dimensions has no fallback.
        """
        heads = {}
        for judgement in unanswered:
            fallback = judgement.dimension.fallback
            if fallback is None:
                raise full.unanswered[judgement.dimension.stage]
            heads[judgement.dimension.name] = (judgement, fallback)
        if not heads:
            return {}
        outputs = frozenset(fallback.stage for _, fallback in heads.values())
        instead = await self._engine.evaluate(served, outputs, picture, prompt, call)
        scores = {}
        for name, (judgement, fallback) in heads.items():
            raw = float(instead.values[fallback.stage][fallback.output].item())
            reason = full.unanswered[judgement.dimension.stage].message
            scores[name] = judgement.degraded(raw, reason, from_store=fallback.stage in instead.from_store)
        return scores

    async def _stage_outputs(self, stage: str, query: Query, image: ImageSource, call: Call) -> Features:
        prompt = normalise(query.prompt, self._settings.limits.prompt_bytes)
        with self.pinned(query.target, [image]) as pinned:
            served = pinned.served
            sees = served.model.plan(frozenset([stage])).views
            picture = self._darkroom.picture(image) if sees else self._darkroom.blank()
            evaluation = await self._engine.evaluate(served, frozenset([stage]), picture, prompt, call)
            if stage in evaluation.unanswered:
                raise evaluation.unanswered[stage]
            return evaluation.values[stage]

    async def _kept_outputs(self, query: Query, image: ImageSource, call: Call) -> None:
        with self.pinned(query.target, [image]) as pinned:
            picture = self._darkroom.picture(image)
            wanted = worth_fetching(pinned.served, query)
            evaluation = await self._engine.evaluate(pinned.served, wanted, picture, query.prompt, call)
        for error in evaluation.unanswered.values():
            raise error

    def _count_scores(self, scores: Sequence[types.Score]) -> None:
        for score in scores:
            if score.degraded:
                self._degradations.labels(score.model, score.dimension).inc()
            if score.calibrated is not None:
                self._scores(score.model, score.model_version, score.dimension).observe(score.calibrated)
            elif score.percentile is not None:
                self._scores(score.model, score.model_version, score.dimension).observe(score.percentile / 100)


def _content(image: ImageSource | RemoteImage) -> bytes:
    """What tells a picture from others."""
    return image.url.encode() if isinstance(image, RemoteImage) else image.data
