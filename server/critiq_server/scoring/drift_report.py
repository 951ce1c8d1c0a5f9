"""What watching for drift says, as JSON: the answer of ``/v1/drift``, which reports and pages read."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from critiq.types import Processes
from critiq_server.scoring.drift_series import SEVERITY, Kind, Series, State, Window
from critiq_server.scoring.drift_settings import DriftSettings
from critiq_server.scoring.drift_statistics import Comparison
from critiq_server.scoring.drift_windows import Sketch

_BINS = 24


class ComparisonJson(BaseModel):
    """A window held against something; what does not apply is null."""

    ks: float | None = Field(description="Kolmogorov-Smirnov statistic, 0 (the same) .. 1; null of embeddings.")
    shift: float | None = Field(
        description="Of embeddings: how far the mean moved, in standard deviations, root mean square over coordinates."
    )
    p_value: float = Field(description="Bound of the probability of such a difference, had nothing changed; one look.")
    margin: float = Field(description="Deducted from ks before: errors of the sketches and of what is compared with.")
    psi: float | None = Field(description="Population stability index, bins between deciles.")
    psi_by_chance: float | None = Field(description="What psi would be on average, had nothing changed.")
    wasserstein: float | None = Field(description="Wasserstein distance in interquartile ranges.")


class WindowJson(BaseModel):
    """The time from ``start`` to ``end`` (ISO 8601, UTC)."""

    start: str
    end: str
    count: int
    comparisons: dict[str, ComparisonJson] = Field(description="By what it is held against: baseline, reference.")


class HistogramJson(BaseModel):
    """Shares of values by bin. One more bin than ``edges``: the first and the last have no end."""

    edges: list[float]
    categories: list[str] = Field(description="Names of the values, one a bin, of what has names; else empty.")
    shares: dict[str, list[float]] = Field(description="By window, baseline, reference; each sums to 1.")


class BaselineJson(BaseModel):
    """The caller's own traffic to compare with."""

    state: Literal["learning", "frozen"]
    count: int
    wanted: int = Field(description="Values that complete it.")
    frozen_at: str | None


class ReferenceJson(BaseModel):
    """The population of the bundle."""

    population: str
    count: int
    quantiles: list[float] = Field(description="Evenly spaced, from the 0th to the 100th percentile.")


class SeriesJson(BaseModel):
    """One quantity of one model version and caller label."""

    model: str
    version: str
    label: str = Field(description="Empty: requests without a label.")
    kind: Kind
    name: str = Field(description="A dimension; or pixels, bytes, format, prompt_length; or a stage.")
    state: State
    since: str | None = Field(description="When the state began; null before the first look.")
    against: Literal["baseline", "reference"] = Field(description="What the state goes by.")
    count: int = Field(description="Values seen.")
    baseline: BaselineJson | None
    reference: ReferenceJson | None
    windows: list[WindowJson] = Field(description="All end now; shortest first. Only those with enough values.")
    telling: int | None = Field(description="Index of the window that differs most surely; the histogram shows it.")
    histogram: HistogramJson | None = Field(description="Null of embeddings, and while no window has enough values.")
    sketches: dict[str, Any] | None = Field(None, description="With ?sketches=true: what reports of servers merge.")


class RuleJson(BaseModel):
    """When there is an alarm: the settings of the same names."""

    check_seconds: float
    slot_seconds: float
    keep_days: float
    alarms_per_year: float
    warnings_per_year: float
    count_as_one: float
    least_ks: float
    least_count: int
    clear_seconds: float
    against: Literal["baseline", "reference"]
    baseline_requests: int
    embedding_every: int


class DriftJson(BaseModel):
    """Whether scores and pictures are still what they were."""

    enabled: bool
    state: State = Field(description="The worst of all series; learning where there is none.")
    time: str
    rule: RuleJson
    series: list[SeriesJson]
    processes: Processes | None = Field(None, description="Whose traffic it is; null where one process serves alone.")


Named = tuple[str, str, str, Series]
"""Model, version, label, series."""


def report(
    settings: DriftSettings, entries: list[SeriesJson], now: float, processes: Processes | None = None
) -> DriftJson:
    """Series described at ``now`` (seconds since 1970), and the worst of their states."""
    return DriftJson(
        enabled=settings.enabled,
        state=max((entry.state for entry in entries), key=SEVERITY.index, default="learning"),
        time=iso(now),
        rule=RuleJson(**{name: getattr(settings, name) for name in RuleJson.model_fields}),
        series=entries,
        processes=processes,
    )


def describe(model: str, version: str, label: str, series: Series, now: float, *, sketches: bool = False) -> SeriesJson:
    """One series as JSON."""
    windows = series.windows(now)
    telling = series.telling(windows)
    baseline = None
    if series.baseline is not None:
        baseline = BaselineJson(
            state="learning" if series.frozen is None else "frozen",
            count=series.baseline.count,
            wanted=series.wanted,
            frozen_at=iso(series.frozen) if series.frozen is not None else None,
        )
    reference = series.reference
    return SeriesJson(
        model=model,
        version=version,
        label=label,
        kind=series.kind,
        name=series.name,
        state=series.state,
        since=iso(series.since) if series.since else None,
        against=series.against,
        count=series.count,
        baseline=baseline,
        reference=ReferenceJson(
            population=reference.population, count=reference.count, quantiles=list(reference.quantiles)
        )
        if reference is not None
        else None,
        windows=[_window(series.kind, window) for window in windows],
        telling=windows.index(telling) if telling is not None else None,
        histogram=_histogram(series, telling, now) if telling is not None else None,
        sketches=series.dump() if sketches else None,
    )


def iso(seconds: float) -> str:
    """Seconds since 1970 as ISO 8601, UTC, to the second."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _window(kind: Kind, window: Window) -> WindowJson:
    comparisons = {against: _comparison(kind, found) for against, found in window.comparisons.items()}
    return WindowJson(start=iso(window.start), end=iso(window.end), count=window.count, comparisons=comparisons)


def _comparison(kind: Kind, found: Comparison) -> ComparisonJson:
    is_vector = kind == "embedding"
    return ComparisonJson(
        ks=None if is_vector else found.size,
        shift=found.size if is_vector else None,
        p_value=found.p_value,
        margin=found.margin,
        psi=found.psi,
        psi_by_chance=found.psi_by_chance,
        wasserstein=found.wasserstein,
    )


def _histogram(series: Series, window: Window, now: float) -> HistogramJson | None:
    """Bins of one width over the window and what its state goes by, but for 0.5 % at each end; values with names have
    a bin each."""
    values = series.summary(window, now)
    if not isinstance(values, Sketch):
        return None
    yardsticks = {against: series.yardstick(against) for against in window.comparisons}
    if series.categories:
        edges = np.arange(len(series.categories) - 1) + 0.5
    else:
        seen = values.quantiles(np.array([0.005, 0.995]))
        main = yardsticks.get(series.against) or next(iter(yardsticks.values()), None)
        ends = seen if main is None else np.concatenate([seen, main.quantiles[[0, -1]]])
        edges = np.linspace(ends.min(), ends.max(), _BINS - 1)
    places = np.unique(edges.astype(np.float32))
    shares = {"window": np.diff(np.concatenate([[0.0], values.cdf(places, inclusive=True), [1.0]]))}
    shares |= {against: yardstick.cdf_shares(places) for against, yardstick in yardsticks.items()}
    return HistogramJson(
        edges=places.tolist(),
        categories=list(series.categories),
        shares={name: np.maximum(found, 0).tolist() for name, found in shares.items()},
    )
