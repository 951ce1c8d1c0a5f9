"""The metrics of several processes as one server's.

Counters and histograms are summed, and what a process counted stays in the sums when it is gone: they never fall.
Gauges are summed over the processes that run, but for those of which each process reports the same thing.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from prometheus_client.core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

Key = tuple[str, str, tuple[tuple[str, str], ...]]
"""Family, name of the sample, labels."""

_COUNTED = ("counter", "histogram", "summary")
_READY = "critiq_model_ready"
_LEAST = re.compile(
    "critiq_model_ready|critiq_certificate_expiry_timestamp_seconds|critiq_disk_free_bytes|critiq_shadow_srcc"
    "|process_start_time_seconds|process_max_fds|.*_created"
)
"""Gauges of which the smallest is told: a model is ready when it is so in every process."""
_MOST = re.compile(
    "critiq_jobs.*|critiq_drift_.*|critiq_gpu_.*|critiq_shadow_(mean_shift|difference_stddev)|critiq_build_info"
    "|critiq_memory_limit_bytes|critiq_disk_size_bytes|critiq_batch_size_limit|critiq_model_load_seconds|process_open_fds"
)
"""Those of which the one furthest from 0 is told: what all processes see alike, the worst of what each watches."""
_SECONDS = 5.0


class MergedMetrics(Collector):
    """To be registered with a ``CollectorRegistry``; asks every process whenever it is collected. Of one that does not
    answer the counters stand as they were.

    Args:
        members: the sockets of the processes that run, by name.
        serving: those of them that serve. The others count; what they are like is nobody's concern yet, or any more.
    """

    def __init__(self, members: Callable[[], Mapping[str, Path]], serving: Callable[[], Collection[str]]) -> None:
        self._members, self._serving = members, serving
        self._lock = threading.Lock()
        self._families: dict[str, tuple[str, str]] = {}
        """Documentation and type."""
        self._counted: dict[str, dict[Key, float]] = {}
        """By each process that runs, when it was asked last."""
        self._gone: dict[Key, float] = {}
        """By those that do not any more."""

    def collect(self) -> Iterable[Metric]:
        with self._lock:  # of two scrapes at once, one would bring a process back that the other has retired
            members, serving = self._members(), self._serving()
            with ThreadPoolExecutor(max(1, len(members))) as pool:
                texts = dict(zip(members, pool.map(_ask, members.values()), strict=True))
            self._retire(members)
            return self._merge(texts, serving)

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is shows when it is collected."""
        return []

    def _retire(self, members: Mapping[str, Path]) -> None:
        for name in [name for name in self._counted if name not in members]:
            _add(self._gone, self._counted.pop(name))

    def _merge(self, texts: Mapping[str, str], serving: Collection[str]) -> list[Metric]:
        merged: dict[Key, float] = {}
        told: Counter[Key] = Counter()
        for name, text in texts.items():
            counted: dict[Key, float] = {}
            for family in text_string_to_metric_families(text):
                self._families[family.name] = (family.documentation, family.type)
                for sample in family.samples:
                    key = (family.name, sample.name, tuple(sorted(sample.labels.items())))
                    if family.type in _COUNTED:
                        counted[key] = sample.value
                    elif name in serving:
                        told[key] += 1
                        merged[key] = _gauge(family.name, merged.get(key), sample.value)
            if text:
                self._counted[name] = counted
        answered = sum(bool(text) for name, text in texts.items() if name in serving)
        for key in merged:
            if key[0] == _READY and told[key] < answered:
                merged[key] = 0.0  # a process that never had the version says nothing of it
        for series in (self._gone, *self._counted.values()):
            _add(merged, series)
        metrics = {name: Metric(name, *about) for name, about in self._families.items()}
        for (family_name, sample_name, labels), value in merged.items():
            metrics[family_name].add_sample(sample_name, dict(labels), value)
        return list(metrics.values())


def _ask(path: Path) -> str:
    """The metrics of one process; empty if it does not answer."""
    try:
        # No TLS, no authorities: reading their certificates would take 50 ms.
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path), verify=False), timeout=_SECONDS) as http:
            answer = http.get("http://process/metrics/", headers={"Accept": "text/plain"})
            return answer.text if answer.status_code == httpx.codes.OK else ""
    except httpx.TransportError:
        return ""


def _gauge(name: str, known: float | None, value: float) -> float:
    if known is None:
        return value
    if _LEAST.fullmatch(name):
        return min(known, value)
    if _MOST.fullmatch(name):
        return max(known, value, key=abs)
    return known + value


def _add(into: dict[Key, float], series: Mapping[Key, float]) -> None:
    for key, value in series.items():
        into[key] = into.get(key, 0.0) + value
