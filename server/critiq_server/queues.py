"""What stands in front of a loaded model's stages: a batcher each, one queue for all questions to one LMM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from critiq.errors import CritiqError
from critiq_server.bundles.golden import probe
from critiq_server.bundles.model import LoadedModel
from critiq_server.engine.batcher import Batcher, BatchReport
from critiq_server.engine.computing import compute_batch
from critiq_server.engine.engine import ServedModel, StageBatcher, batch_limit
from critiq_server.engine.health import ModelHealth
from critiq_server.engine.lmm import Lane, Queue, open_lanes
from critiq_server.engine.workers import Workers
from critiq_server.features.records import Features
from critiq_server.runtime.lmm.stage import Question
from critiq_server.runtime.onnx import CPU
from critiq_server.settings import Settings
from critiq_server.telemetry.metrics import Metrics


def with_queues(
    model: LoadedModel,
    settings: Settings,
    metrics: Metrics,
    workers: Workers,
    on_health: Callable[[], None] = lambda: None,
) -> ServedModel:
    """Puts a batcher in front of each stage, and one pair of eyes on all of them.

    Args:
        workers: the threads that stages on the CPU share.
        on_health: called when the model is suspended because it fails, and when it is back.
    """
    name = model.manifest.name
    faults = settings.runtime.faults
    health = ModelHealth(
        name,
        faults,
        partial(probe, model),
        lambda stage, kind: metrics.stage_faults.labels(name, stage, kind).inc(),
        on_health,
    )
    batchers: dict[str, StageBatcher | Lane] = {}
    for stage_name, stage in model.stages.items():
        if stage.lmm is None:
            batchers[stage_name] = Batcher(
                compute=partial(compute_batch, stage, on_batch=partial(health.batch_ended, stage_name)),
                max_batch=batch_limit(stage, settings.engine.max_batch),
                max_queue=settings.limits.in_flight,
                workers=stage.runtime.concurrency,
                max_delay=settings.engine.max_delay_ms / 1000,
                on_batch=_on_batch(metrics, name, stage_name),
                on_drop=metrics.dropped.labels(name, stage_name).inc,
                name=stage_name,
                pool=workers if stage.runtime.provider == CPU else None,
                max_compute=faults.max_compute_seconds,
                on_lost=partial(health.batch_lost, stage_name),
                attributes=_attributes(model, stage_name, stage.runtime.provider),
            )
    # An LMM has time limits and a breaker of its own, and its features may be in a store.
    health.queues = [batcher for batcher in batchers.values() if isinstance(batcher, Batcher)]

    def lmm_queue(
        lmm: str,
        compute: Callable[[list[Question]], Sequence[Features | CritiqError]],
        max_batch: int,
        concurrency: int,
    ) -> Queue:
        """The queue of one LMM's questions; in the metrics it goes by the first stage that asks it."""
        return Batcher(
            compute=compute,
            max_batch=max_batch,
            max_queue=settings.limits.in_flight * len(model.stages),
            workers=concurrency,
            max_delay=settings.lmm.max_delay_ms / 1000,
            on_batch=_on_batch(metrics, name, lmm),
            on_drop=metrics.dropped.labels(name, lmm).inc,
            name=lmm,
            attributes=_attributes(model, lmm, model.stages[lmm].runtime.provider),
        )

    batchers |= open_lanes(model, lmm_queue)
    lasting = {
        stage_name
        for stage_name, stage in model.stages.items()
        if stage.spec.outlasts or (stage.spec.cache and settings.features.includes(name, stage_name))
    }
    return ServedModel(model, batchers, frozenset(lasting), health)


def _attributes(model: LoadedModel, stage: str, provider: str) -> dict[str, str]:
    return {
        "critiq.model": model.manifest.name,
        "critiq.model.version": model.manifest.version,
        "critiq.stage": stage,
        "critiq.provider": provider,
    }


def _on_batch(metrics: Metrics, model: str, stage: str) -> Callable[[BatchReport], None]:
    size = metrics.batch_size.labels(model, stage)
    queue = metrics.queue.labels(model, stage)
    compute = metrics.compute.labels(model, stage)

    def on_batch(report: BatchReport) -> None:
        size.observe(report.size)
        compute.observe(report.compute_seconds)
        for seconds in report.queue_seconds:
            queue.observe(seconds)

    return on_batch


class QueueCollector(Collector):
    """The queues as they are when metrics are scraped. Versions of a model that are served together count as one.

    Args:
        served: the models that are loaded; asked in the thread that scrapes.
        decoding: pictures that wait to be decoded.
    """

    def __init__(self, served: Callable[[], Iterable[ServedModel]], decoding: Callable[[], int]) -> None:
        self._served, self._decoding = served, decoding

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return self._families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        decoding, *by_stage = self._families()
        decoding.add_metric([], self._decoding())
        found: dict[tuple[str, str], tuple[int, int, int, int]] = {}
        for served in self._served():
            # Stages that ask one LMM share a queue.
            fronts = (front.queue if isinstance(front, Lane) else front for front in served.batchers.values())
            for queue in {id(front): front for front in fronts}.values():
                label = (served.model.manifest.name, queue.name)
                waiting, running, limit, size = found.get(label, (0, 0, 0, 0))
                found[label] = (
                    waiting + queue.waiting,
                    running + queue.running,
                    limit + queue.workers,
                    max(size, queue.max_batch),
                )
        for label, values in found.items():
            for family, value in zip(by_stage, values, strict=True):
                family.add_metric(label, value)
        yield from (decoding, *by_stage)

    @staticmethod
    def _families() -> tuple[GaugeMetricFamily, ...]:
        described = {
            "critiq_queue_length": "Items that wait for their batch, by model and stage.",
            "critiq_batches_running": "Batches that are being computed, by model and stage.",
            "critiq_batches_running_limit": "Batches that may be computed at once, by model and stage.",
            "critiq_batch_size_limit": "Items in a batch at the most, by model and stage.",
        }
        decoding = GaugeMetricFamily("critiq_image_decode_queue_length", "Pictures that wait to be decoded.")
        labelled = (GaugeMetricFamily(name, text, labels=["model", "stage"]) for name, text in described.items())
        return (decoding, *labelled)
