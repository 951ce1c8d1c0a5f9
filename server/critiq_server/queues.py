"""What stands in front of a loaded model's stages: a batcher each, one queue for all questions to one LMM."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from critiq.errors import CritiqError
from critiq_server.bundles.model import LoadedModel
from critiq_server.engine.batcher import Batcher, BatchReport
from critiq_server.engine.engine import ServedModel, StageBatcher, batch_limit, compute_batch
from critiq_server.engine.lmm import Lane, Queue, open_lanes
from critiq_server.engine.workers import Workers
from critiq_server.features.records import Features
from critiq_server.runtime.lmm.stage import Question
from critiq_server.runtime.onnx import CPU
from critiq_server.settings import Settings
from critiq_server.telemetry.metrics import Metrics


def with_queues(model: LoadedModel, settings: Settings, metrics: Metrics, workers: Workers) -> ServedModel:
    """Puts a batcher in front of each stage.

    Args:
        workers: the threads that stages on the CPU share.
    """
    name = model.manifest.name
    batchers: dict[str, StageBatcher | Lane] = {}
    for stage_name, stage in model.stages.items():
        if stage.lmm is None:
            batchers[stage_name] = Batcher(
                compute=partial(compute_batch, stage),
                max_batch=batch_limit(stage, settings.engine.max_batch),
                max_queue=settings.limits.in_flight,
                workers=stage.runtime.concurrency,
                max_delay=settings.engine.max_delay_ms / 1000,
                on_batch=_on_batch(metrics, name, stage_name),
                on_drop=metrics.dropped.labels(name, stage_name).inc,
                name=stage_name,
                pool=workers if stage.runtime.provider == CPU else None,
            )

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
        )

    batchers |= open_lanes(model, lmm_queue)
    lasting = {
        stage_name
        for stage_name, stage in model.stages.items()
        if stage.spec.outlasts or (stage.spec.cache and settings.features.includes(name, stage_name))
    }
    return ServedModel(model, batchers, frozenset(lasting))


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
