"""Shadows for Prometheus: how far they agree, as it is scraped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from critiq.aliases import ShadowReport

_PAIR = ["alias", "served", "candidate"]


class ShadowCollector(Collector):
    """Gauges of all shadows. Bounded: aliases and their targets are few, dimensions and policies come from files."""

    def __init__(self, reports: Callable[[], Iterable[ShadowReport]]) -> None:
        self._reports = reports

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return list(self._families().values())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        families = self._families()
        for report in self._reports():
            for pair in report.pairs:
                labels = [report.alias, str(pair.served), str(report.candidate)]
                for dimension in pair.dimensions:
                    values = [*labels, dimension.dimension]
                    families["pictures"].add_metric(values, dimension.count)
                    families["shift"].add_metric(values, dimension.mean_shift)
                    if dimension.srcc is not None:
                        families["srcc"].add_metric(values, dimension.srcc)
                    if dimension.difference_stddev is not None:
                        families["stddev"].add_metric(values, dimension.difference_stddev)
                for decided in pair.decisions:
                    families["decisions"].add_metric([*labels, decided.rule], decided.count)
                    families["flips"].add_metric([*labels, decided.rule], decided.flips)
        yield from families.values()

    @staticmethod
    def _families() -> dict[str, GaugeMetricFamily]:
        by_dimension, by_rule = [*_PAIR, "dimension"], [*_PAIR, "rule"]
        since = "since the alias was changed last"
        described = {
            "pictures": (f"Pictures scored by a served version and by the candidate {since}.", by_dimension),
            "srcc": ("Spearman's rank correlation of their scores over the last pictures.", by_dimension),
            "shift": (f"Mean of candidate's minus served scores {since}.", by_dimension),
            "stddev": (f"Standard deviation of candidate's minus served scores {since}.", by_dimension),
            "decisions": (f"Pictures about which a policy or threshold decided by both {since}.", by_rule),
            "flips": ("Those of them about which it decided differently.", by_rule),
        }
        names = {"shift": "mean_shift", "stddev": "difference_stddev"}
        return {
            key: GaugeMetricFamily(f"critiq_shadow_{names.get(key, key)}", text, labels=labels)
            for key, (text, labels) in described.items()
        }
