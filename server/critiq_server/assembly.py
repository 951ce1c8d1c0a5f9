"""The parts that answer queries, put together: what the server puts its faces before, and bulk scoring asks itself."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

from critiq.errors import CritiqError
from critiq_server.answering import Answering
from critiq_server.bundles.model import LoadedModel
from critiq_server.bundles.repository import BUILTIN
from critiq_server.engine.admission import Admission
from critiq_server.engine.engine import Engine, ServedModel
from critiq_server.engine.pictures import Darkroom
from critiq_server.engine.workers import Workers
from critiq_server.features.memory import MemoryStore
from critiq_server.features.opening import open_tiers
from critiq_server.features.records import Features
from critiq_server.features.store import StoreError
from critiq_server.features.tiers import Report
from critiq_server.images.remote import RemotePictures
from critiq_server.listening import StartError
from critiq_server.others import ALONE, Others
from critiq_server.queues import QueueCollector, with_queues
from critiq_server.registry import Registry
from critiq_server.routing.operations import Routing
from critiq_server.routing.shadow import Shadows
from critiq_server.routing.shadow_metrics import ShadowCollector
from critiq_server.routing.state import StateError, StateFile
from critiq_server.runtime.lmm.pool import Lmms
from critiq_server.runtime.onnx import usable_cores
from critiq_server.scoring.drift import DriftMonitor
from critiq_server.scoring.drift_group import GroupDrift
from critiq_server.scoring.drift_metrics import DriftCollector
from critiq_server.scoring.policies import Policy, unfit
from critiq_server.service import Service
from critiq_server.settings import Settings
from critiq_server.telemetry.metrics import Metrics
from critiq_server.telemetry.room import RoomCollector


class Assembly:
    """A service without a face. Made in a running event loop; use :meth:`load`, ask ``service``, then :meth:`close`.

    Args:
        settings: all of them; what is of faces is not looked at.
        metrics: where the parts count.
        policies: moderation policies; a model that they are about must give what they compare.
        on_change: told (name, version, serving?) when a model's version starts or stops serving.
        others: serving processes of the same group.
        cores: threads that decode and compute on the CPU; 0: as many as this process may use cores.

    Raises:
        StartError: a store of features cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        policies: Collection[Policy] = (),
        on_change: Callable[[str, str, bool], None] = lambda name, version, serving: None,
        cores: int = 0,
        others: Others = ALONE,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._policies = policies
        self._told = on_change
        self._cores = cores or usable_cores()
        self._others = others
        try:
            self.service = self._build_service()
        except StoreError as error:
            raise StartError(str(error)) from error

    async def load(self, wanted: Sequence[str] = ()) -> None:
        """Loads the models that the settings name, or the newest version of each, and what aliases point at.

        Args:
            wanted: NAME or NAME:VERSION of what to load in place of these.

        Raises:
            StartError: the default model could not be loaded, or an alias cannot be.
        """
        registry, routing = self.service.registry, self.service.routing
        try:
            routing.begin(self._settings.models.aliases)
        except (StateError, CritiqError) as error:
            raise StartError(str(error)) from error
        wanted = wanted or self._settings.models.load or tuple(dict.fromkeys(model.name for model in registry.list()))
        named = [tuple(entry.partition(":")[::2]) for entry in wanted]
        failures = []
        for name, version in [*named, *routing.wanted()]:
            if version and registry.serves(name, version):
                continue
            try:
                await registry.load(name, version)
            except Exception as error:
                failures.append(str(error))
        if not registry.ready:
            raise StartError(
                f"the default model {registry.default_name!r} is not served: {'; '.join(failures) or 'not found'}"
            )

    async def close(self) -> None:
        """Lets go of models and stores; what is still being answered after five seconds is left."""
        await self._shadows.close()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.service.registry.close(), 5.0)
        self._drift.close()
        if self._below is not None:
            await self._below.close()
        self._workers.close()

    def _build_service(self) -> Service:
        settings, metrics = self._settings, self._metrics
        self._below = open_tiers(settings.features, self._on_tier, lambda tier: metrics.tier_damaged.labels(tier).inc())
        store = MemoryStore(settings.engine.store_mb * 2**20)
        metrics.store_bytes.set_function(lambda: store.size_bytes)
        lookups: dict[tuple[str, bool], Any] = {}

        def on_lookup(stage: str, hit: bool) -> None:
            counter = lookups.get((stage, hit))
            if counter is None:
                counter = lookups[stage, hit] = metrics.lookups.labels(stage, "hit" if hit else "miss")
            counter.inc()

        metrics.store_limit.set(settings.engine.store_mb * 2**20)
        admission = Admission(settings.limits.in_flight, settings.limits.in_flight_bytes)
        metrics.in_flight.set_function(lambda: admission.items)
        metrics.in_flight_limit.set(settings.limits.in_flight)
        metrics.in_flight_bytes.set_function(lambda: admission.bytes)
        metrics.in_flight_bytes_limit.set(settings.limits.in_flight_bytes)
        self._workers = workers = Workers(self._cores, "cpu")
        metrics.threads.set(workers.count)
        metrics.threads_busy.set_function(lambda: workers.count - workers.free)
        darkroom = Darkroom(
            settings.limits.image,
            settings.engine.background,
            metrics.decode.observe,
            self._workers,
            settings.limits.in_flight,
            metrics.decode_wait.observe,
        )
        registry = Registry(
            [*settings.models.directories, BUILTIN],
            settings.models.default,
            settings.runtime,
            self._serve_model,
            self._on_change,
            Lmms(settings.lmm),
            lambda manifest: unfit(self._policies, manifest, registry.called(manifest.name, manifest.version)),
            self._on_load,
        )
        metrics.registry.register(QueueCollector(registry.served, lambda: darkroom.waiting))
        self._drift = DriftMonitor(settings.drift, share=self._others.count)
        drift = GroupDrift(self._drift, self._others)
        metrics.registry.register(DriftCollector(drift.watched))
        metrics.registry.register(RoomCollector(settings.written_to()))

        def on_output(served: ServedModel, stage: str, features: Features) -> None:
            self._drift.embed(served.model.manifest, stage, features)

        engine = Engine(store, on_lookup, self._below, on_output)
        remote = RemotePictures(settings.urls, settings.limits.image, self._on_download)
        answering = Answering(settings, registry, engine, darkroom, metrics, remote, self._drift)
        models = settings.models
        state = StateFile(models.state_file) if models.state_file is not None else None
        self._shadows = Shadows(
            settings,
            registry,
            answering,
            admission,
            lambda: workers.free > 1 or workers.free == workers.count,
            self._policies,
            lambda alias, outcome: metrics.shadowed.labels(alias, outcome).inc(),
        )
        metrics.registry.register(ShadowCollector(self._shadows.reports))
        routing = Routing(
            registry,
            state,
            self._shadows,
            allowed=models.allow_changes,
            policies=self._policies,
            others=self._others,
        )
        return Service(settings, registry, answering, admission, metrics, drift, routing, self._others)

    def _serve_model(self, model: LoadedModel) -> ServedModel:
        self._drift.serve(model.manifest, model.vectors)
        on_health = partial(self.service.registry.check_health, model.manifest.name, model.manifest.version)
        return with_queues(model, self._settings, self._metrics, self._workers, on_health)

    def _on_load(self, model: str, outcome: str, seconds: float) -> None:
        self._metrics.model_loads.labels(model, outcome).inc()
        if outcome == "loaded":
            self._metrics.model_load_seconds.labels(model).set(seconds)

    def _on_download(self, code: str, seconds: float) -> None:
        self._metrics.downloads.labels(code).inc()
        self._metrics.download_seconds.observe(seconds)

    def _on_tier(self, report: Report) -> None:
        metrics, tier, operation = self._metrics, report.tier, report.operation
        counter, done, left = (
            (metrics.tier_lookups, "hit", "miss") if operation == "get" else (metrics.tier_writes, "written", "error")
        )
        left = "skipped" if report.skipped else "error" if report.failed else left
        counter.labels(tier, done).inc(report.done)
        counter.labels(tier, left).inc(report.asked - report.done)
        metrics.tier_bytes.labels(tier, operation).inc(report.bytes)
        if not report.skipped:
            metrics.tier_seconds.labels(tier, operation).observe(report.seconds)

    def _on_change(self, name: str, version: str, serving: bool) -> None:
        self._metrics.models.labels(name, version).set(1 if serving else 0)
        self._told(name, version, serving)
