"""What several servers know of drift, as one: fetched, merged, written as tables and plots."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import ValidationError

from critiq.errors import Unavailable
from critiq_evaluation.errors import EvaluationError
from critiq_server.bundles.manifest import Reference
from critiq_server.scoring.drift_report import ComparisonJson, DriftJson, SeriesJson, describe
from critiq_server.scoring.drift_series import SEVERITY, Series
from critiq_server.scoring.drift_settings import DriftSettings

_COLOURS = {"window": "#d1495b", "baseline": "#30638e", "reference": "#8a8a8a"}
_STATE_COLOURS = {"alarm": "#b00020", "warning": "#b26a00", "steady": "#222222", "learning": "#777777"}


@dataclass(frozen=True, slots=True)
class Server:
    """How a server's REST port is asked."""

    url: str
    headers: Mapping[str, str]
    timeout: float

    def get(self, **filters: str) -> DriftJson:
        """Its ``/v1/drift`` with sketches."""
        return self._ask("GET", "/v1/drift", params={**filters, "sketches": "true"})

    def set_baseline(self, **body: Any) -> DriftJson:
        return self._ask("POST", "/v1/drift/baseline", json=body)

    def _ask(self, method: str, path: str, **arguments: Any) -> DriftJson:
        if not self.url.startswith(("http://", "https://")):
            raise EvaluationError(f"{self.url}: drift is read over REST; give http://host:port, by default port 8000")
        try:
            response = httpx.request(
                method, self.url.rstrip("/") + path, headers=dict(self.headers), timeout=self.timeout, **arguments
            )
        except httpx.InvalidURL as error:
            raise EvaluationError(f"{self.url} is no URL: {error}") from error
        except httpx.HTTPError as error:
            raise Unavailable(f"{self.url} was not reached: {error}") from error
        if response.status_code >= 400:
            raise EvaluationError(f"{self.url} refused: {_reason(response)}")
        try:
            return DriftJson.model_validate_json(response.content)
        except ValidationError as error:
            raise EvaluationError(f"{self.url} did not answer as a critiq server does: {error.errors()[0]}") from error


def merged(answers: Mapping[str, DriftJson]) -> DriftJson:
    """The answers of several servers, by URL, as one: distributions of all their traffic, judged anew.

    A state is the worst of what the merged windows say and of what each server says of its own.

    Raises:
        EvaluationError: their sketches or settings do not fit together.
    """
    first = next(iter(answers.values()))
    if len(answers) == 1:
        return _without_sketches(first, first.series)
    for url, answer in answers.items():
        if answer.rule != first.rule:
            raise EvaluationError(f"{url} has other settings of drift than {next(iter(answers))}; give them the same")
    now = max(datetime.fromisoformat(answer.time).timestamp() for answer in answers.values())
    settings = DriftSettings(**first.rule.model_dump())
    groups: dict[tuple[str, ...], list[tuple[str, SeriesJson]]] = {}
    for url, answer in answers.items():
        for entry in answer.series:
            key = entry.model, entry.version, entry.label, entry.kind, entry.name
            groups.setdefault(key, []).append((url, entry))
    series = [_merged_series(settings, group, now) for group in groups.values()]
    return _without_sketches(first.model_copy(update={"processes": None}), series)


def silent(answers: Mapping[str, DriftJson]) -> list[str]:
    """Of which processes of which server, by URL, the answers do not tell."""
    return [
        f"{url}: {len(found.missing)} of {found.of} processes did not answer, and are left out: "
        f"{', '.join(map(str, found.missing))}"
        for url, answer in answers.items()
        if (found := answer.processes) is not None and found.missing
    ]


def _merged_series(settings: DriftSettings, group: Sequence[tuple[str, SeriesJson]], now: float) -> SeriesJson:
    _, first = group[0]
    reference = Reference(**first.reference.model_dump()) if first.reference is not None else None
    categories = tuple(next((entry.histogram.categories for _, entry in group if entry.histogram is not None), ()))
    joined: Series | None = None
    for url, entry in group:
        try:
            if joined is None:
                joined = Series(entry.kind, entry.name, settings, reference, categories)
                joined.restore(entry.sketches or {})
            else:
                joined.merge(entry.sketches or {})
        except ValueError as error:
            raise EvaluationError(f"{url}: the sketch of {entry.name!r} cannot be merged: {error}") from error
    assert joined is not None  # noqa: S101 - no group is empty
    states = [joined.judge(now), *(entry.state for _, entry in group)]
    joined.state = max(states, key=SEVERITY.index)
    joined.since = min(
        (
            datetime.fromisoformat(entry.since).timestamp()
            for _, entry in group
            if entry.state == joined.state and entry.since is not None
        ),
        default=now,
    )
    return describe(first.model, first.version, first.label, joined, now)


def _without_sketches(answer: DriftJson, series: Sequence[SeriesJson]) -> DriftJson:
    entries = [entry.model_copy(update={"sketches": None}) for entry in series]
    state = max((entry.state for entry in entries), key=SEVERITY.index, default="learning")
    return answer.model_copy(update={"series": entries, "state": state})


def table(found: DriftJson) -> str:
    """A Markdown table, a line a series; the figures are those of the window that differs most surely."""
    if not found.enabled:
        return "Drift is not watched: the server's setting drift.enabled is off.\n"
    if not found.series:
        return "No scores yet.\n"
    lines = [
        "| model | label | quantity | state | since | window | values "
        "| held against | KS or shift | p | PSI | Wasserstein |",
        "|---" * 12 + "|",
    ]
    for entry in sorted(found.series, key=lambda entry: -SEVERITY.index(entry.state)):
        cells = [f"{entry.model} {entry.version}", entry.label or "-", entry.name, entry.state, entry.since or "-"]
        if entry.telling is None:
            learning = entry.baseline is not None and entry.baseline.state == "learning"
            what = (
                f"baseline: {entry.baseline.count} of {entry.baseline.wanted}" if learning and entry.baseline else "-"
            )
            cells += ["-", "-", what, "-", "-", "-", "-"]
        else:
            window = entry.windows[entry.telling]
            against = entry.against if entry.against in window.comparisons else next(iter(window.comparisons), "-")
            cells += [f"{window.start} to {window.end}", str(window.count), against]
            cells += _figures(window.comparisons.get(against))
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _figures(found: ComparisonJson | None) -> list[str]:
    if found is None:
        return ["-"] * 4
    size = found.ks if found.ks is not None else found.shift
    numbers = [(size, ".3f"), (found.p_value, ".2g"), (found.psi, ".3f"), (found.wasserstein, ".2f")]
    return ["-" if number is None else format(number, form) for number, form in numbers]


def write(found: DriftJson, out: Path) -> list[Path]:
    """Writes ``drift.json``, ``drift.md`` and a picture for each model version and label; returns the paths."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "drift.json", out / "drift.md"]
    paths[0].write_text(json.dumps(found.model_dump(), indent=2, ensure_ascii=False), encoding="utf-8")
    paths[1].write_text(f"# Drift at {found.time}: {found.state}\n\n{table(found)}", encoding="utf-8")
    groups: dict[tuple[str, str, str], list[SeriesJson]] = {}
    for entry in found.series:
        if entry.histogram is not None:
            groups.setdefault((entry.model, entry.version, entry.label), []).append(entry)
    for number, (origin, group) in enumerate(groups.items()):
        name = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(part for part in origin if part))
        path = out / f"drift-{number + 1}-{name}.png"
        _figure(origin, group).savefig(path, dpi=110)
        paths.append(path)
    return paths


def _figure(origin: tuple[str, str, str], group: Sequence[SeriesJson]) -> Figure:
    columns = min(3, len(group))
    rows = -(-len(group) // columns)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.2 * columns, 3.1 * rows), layout="constrained")
        model, version, label = origin
        figure.suptitle(f"{model} {version}" + (f", label {label}" if label else ""))
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, entry in zip(grid.flat, group, strict=False):
            _panel(axes, entry)
        for axes in grid.flat[len(group) :]:
            axes.set_visible(False)
    return figure


def _panel(axes: Axes, entry: SeriesJson) -> None:
    histogram = entry.histogram
    if histogram is None or entry.telling is None:
        return
    axes.set_title(f"{entry.name}: {entry.state}", color=_STATE_COLOURS[entry.state])
    axes.set_ylabel("share")
    count = entry.windows[entry.telling].count
    names = {"window": f"window ({count:,})", "baseline": "baseline", "reference": "reference"}
    if histogram.categories:
        places = np.arange(len(histogram.categories))
        for at, (name, shares) in enumerate(histogram.shares.items()):
            axes.bar(places + 0.4 * at, shares, 0.38, color=_COLOURS[name], label=names[name])
        axes.set_xticks(places + 0.2, histogram.categories, rotation=30)
    else:
        edges = np.array(histogram.edges)
        width = edges[1] - edges[0] if len(edges) > 1 else 1.0
        ends = np.concatenate([[edges[0] - width], edges, [edges[-1] + width]])
        for name, shares in histogram.shares.items():
            fill = name == "window"
            axes.stairs(shares, ends, fill=fill, alpha=0.45 if fill else 1, color=_COLOURS[name], label=names[name])
    axes.legend(frameon=False, fontsize=7)


def _reason(response: httpx.Response) -> str:
    try:
        return str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"HTTP {response.status_code}"
