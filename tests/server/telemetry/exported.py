"""What a server's registry exports, by name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry


@dataclass(frozen=True)
class Exported:
    """A metric as the documentation names it: a counter ends in ``_total``."""

    name: str
    kind: str
    labels: tuple[str, ...]


def exported(registry: CollectorRegistry) -> Iterator[Exported]:
    """All metrics, those without any sample yet too."""
    for collector in list(registry._collector_to_names):
        own = getattr(collector, "_labelnames", None)
        families = list(collector.describe()) if hasattr(collector, "describe") else []
        for family in families or collector.collect():
            labels = own if own is not None else getattr(family, "_labelnames", ())
            name = f"{family.name}_total" if family.type == "counter" else family.name
            yield Exported(name, family.type, tuple(labels))
