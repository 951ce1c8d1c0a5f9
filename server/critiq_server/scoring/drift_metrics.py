"""Drift for Prometheus: what the last look found, as it is scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from critiq_server.scoring.drift_report import Named

_LABELS = ["model", "version", "label", "kind", "name"]
_ALARM = {"learning": 0, "steady": 0, "warning": 1, "alarm": 2}


class DriftCollector(Collector):
    """Gauges of all series. They are bounded as the series are: models, dimensions and labels that settings allow."""

    def __init__(self, series: Callable[[], Iterable[Named]]) -> None:
        self._series = series

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return list(self._families().values())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = self._families()
        for model, version, label, series in self._series():
            values = [model, version, label, series.kind, series.name]
            families["alarm"].add_metric(values, _ALARM[series.state])
            window = series.latest
            if window is None:
                continue
            families["count"].add_metric(values, window.count)
            found = window.comparisons.get(series.against)
            if found is None:
                continue
            families["shift" if series.kind == "embedding" else "ks"].add_metric(values, found.size)
            if found.psi is not None:
                families["psi"].add_metric(values, found.psi)
            if found.wasserstein is not None:
                families["wasserstein"].add_metric(values, found.wasserstein)
        yield from families.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        window = "of the window that differs most surely"
        described = {
            "alarm": "0: nothing, 1: warning, 2: alarm.",
            "count": f"Values {window}.",
            "ks": f"Kolmogorov-Smirnov statistic {window}.",
            "psi": f"Population stability index {window}.",
            "wasserstein": f"Wasserstein distance {window}, in interquartile ranges.",
            "shift": f"How far the mean of embeddings moved, {window}, in standard deviations.",
        }
        names = {"count": "critiq_drift_window_count"}
        return {
            key: GaugeMetricFamily(names.get(key, f"critiq_drift_{key}"), text, labels=_LABELS)
            for key, text in described.items()
        }
