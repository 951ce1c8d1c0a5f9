"""What the page's live view shows: this server's counters since it started, as JSON.

They only grow, until one of several processes ends. Two answers, one subtracted from the other, say what happened in
between.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI
from prometheus_client import Counter, Histogram
from pydantic import BaseModel, Field, ValidationError

from critiq.types import Processes
from critiq_server.service import Service

Labels = tuple[str, ...]
_SECONDS = 1.0
"""Within which other processes must answer: the page asks once a second."""


class DistributionJson(BaseModel):
    """A histogram. The buckets end at ``bounds`` (inclusive); one more, the last, has no end."""

    bounds: list[float]
    counts: list[int] = Field(description="One more than `bounds`.")
    sum: float = Field(description="Sum of the values.")


class UnderWayJson(BaseModel):
    """Accepted and not yet answered, and the most that is accepted at once."""

    pictures: int
    pictures_limit: int
    bytes: int
    bytes_limit: int


class CallsJson(BaseModel):
    """Calls answered. ``code`` is OK or the error's."""

    operation: str
    model: str
    code: str
    count: int


class PicturesJson(BaseModel):
    """Pictures answered. ``code`` is OK or the error's."""

    model: str
    code: str
    count: int


class LatencyJson(BaseModel):
    """Time from accepting a call to its answer."""

    operation: str
    seconds: DistributionJson


class StageJson(BaseModel):
    """What one stage of a model computed: items in a batch, how long an item waited, how long a batch took."""

    model: str
    stage: str
    batch_size: DistributionJson
    queue_seconds: DistributionJson
    compute_seconds: DistributionJson


class ScoresJson(BaseModel):
    """Scores given, 0 (worst) to 1 (best): calibrated, or percentile / 100 where a dimension has no calibration."""

    model: str
    version: str
    dimension: str
    values: DistributionJson


class StoreJson(BaseModel):
    """The store of stages' outputs in memory."""

    hits: int
    misses: int
    bytes: int


class LiveJson(BaseModel):
    """All that was counted since the server started; `under_way` and the store's bytes are of this moment."""

    time: float = Field(description="The server's clock, seconds since 1970.")
    under_way: UnderWayJson
    calls: list[CallsJson]
    pictures: list[PicturesJson]
    latency: list[LatencyJson]
    stages: list[StageJson]
    scores: list[ScoresJson]
    store: StoreJson
    processes: Processes | None = Field(None, description="Null where one process serves alone.")


def add_live(app: FastAPI, service: Service) -> None:
    """Adds ``/v1/live``."""

    @app.get("/v1/live", summary="Counters for the page's live view", tags=["health"], response_model=LiveJson)
    async def live() -> LiveJson:
        replies = await service.others.ask("live", seconds=_SECONDS)
        found, processes = replies.read(_read)
        return snapshot(service) if processes is None else together([snapshot(service), *found], processes)


def snapshot(service: Service) -> LiveJson:
    metrics, limits, admission = service.metrics, service.settings.limits, service.admission
    queue, compute = distributions(metrics.queue), distributions(metrics.compute)
    lookups = {"hit": 0, "miss": 0}
    for (_, outcome), count in counts(metrics.lookups):
        lookups[outcome] += count
    return LiveJson(
        time=time.time(),
        under_way=UnderWayJson(
            pictures=admission.items,
            pictures_limit=limits.in_flight,
            bytes=admission.bytes,
            bytes_limit=limits.in_flight_bytes,
        ),
        calls=[
            CallsJson(operation=operation, model=model, code=code, count=count)
            for (operation, model, code), count in counts(metrics.requests)
        ],
        pictures=[PicturesJson(model=model, code=code, count=count) for (model, code), count in counts(metrics.items)],
        latency=[
            LatencyJson(operation=operation, seconds=found)
            for (operation,), found in distributions(metrics.latency).items()
        ],
        stages=[
            StageJson(
                model=labels[0],
                stage=labels[1],
                batch_size=sizes,
                queue_seconds=queue[labels],
                compute_seconds=compute[labels],
            )
            for labels, sizes in distributions(metrics.batch_size).items()
        ],
        scores=[
            ScoresJson(model=model, version=version, dimension=dimension, values=values)
            for (model, version, dimension), values in distributions(metrics.scores).items()
        ],
        store=StoreJson(hits=lookups["hit"], misses=lookups["miss"], bytes=int(_only(metrics.store_bytes))),
    )


def together(found: Sequence[LiveJson], processes: Processes) -> LiveJson:
    """The sums of what several processes counted."""
    under_way = [each.under_way for each in found]
    stores = [each.store for each in found]
    return LiveJson(
        time=found[0].time,
        under_way=UnderWayJson(
            **{name: sum(getattr(each, name) for each in under_way) for name in UnderWayJson.model_fields}
        ),
        calls=_summed(each.calls for each in found),
        pictures=_summed(each.pictures for each in found),
        latency=_summed(each.latency for each in found),
        stages=_summed(each.stages for each in found),
        scores=_summed(each.scores for each in found),
        store=StoreJson(**{name: sum(getattr(each, name) for each in stores) for name in StoreJson.model_fields}),
        processes=processes,
    )


def _read(reply: Any) -> LiveJson | None:
    """``None`` for what a process of another version says."""
    try:
        return LiveJson.model_validate(reply)
    except ValidationError:
        return None


Entry = TypeVar("Entry", bound=BaseModel)


def _summed(lists: Iterable[Sequence[Entry]]) -> list[Entry]:
    """Entries with the same names as one, whose counts and histograms are sums."""
    groups: dict[Labels, list[Entry]] = {}
    for entries in lists:
        for entry in entries:
            names = tuple(value for _, value in entry if isinstance(value, str))
            groups.setdefault(names, []).append(entry)
    return [_sum(group) for group in groups.values()]


def _sum(group: Sequence[Entry]) -> Entry:
    sums: dict[str, Any] = {}
    for name, value in group[0]:
        values = [getattr(entry, name) for entry in group]
        if isinstance(value, int):
            sums[name] = sum(values)
        elif isinstance(value, DistributionJson):
            alike = [each for each in values if each.bounds == value.bounds]  # all, but during an upgrade
            sums[name] = DistributionJson(
                bounds=value.bounds,
                counts=[sum(counts) for counts in zip(*(each.counts for each in alike), strict=True)],
                sum=sum(each.sum for each in alike),
            )
    return group[0].model_copy(update=sums)


def counts(counter: Counter) -> Iterator[tuple[Labels, int]]:
    """A counter's values by its labels."""
    for family in counter.collect():
        for sample in family.samples:
            if sample.name.endswith("_total"):
                yield tuple(sample.labels.values()), int(sample.value)


def distributions(histogram: Histogram) -> dict[Labels, DistributionJson]:
    """A histogram's buckets, no longer cumulative, by its labels."""
    found: dict[Labels, DistributionJson] = {}
    for family in histogram.collect():
        below = 0
        for sample in family.samples:
            labels = tuple(value for name, value in sample.labels.items() if name != "le")
            entry = found.setdefault(labels, DistributionJson(bounds=[], counts=[], sum=0.0))
            if sample.name.endswith("_bucket"):
                bound = float(sample.labels["le"])
                below = below if entry.counts else 0
                entry.counts.append(int(sample.value) - below)
                below = int(sample.value)
                if bound != float("inf"):
                    entry.bounds.append(bound)
            elif sample.name.endswith("_sum"):
                entry.sum = float(sample.value)
    return found


def _only(gauge: Any) -> float:
    """The value of a gauge without labels."""
    (family,) = gauge.collect()
    return float(family.samples[0].value)
