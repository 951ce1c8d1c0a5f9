"""What people see on a terminal, and the JSON that scripts read."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from critiq import types
from critiq.errors import CritiqError

_BAR_CELLS = 20
_REPORTED = {
    "orientation_applied": "its EXIF orientation was applied",
    "alpha_flattened": "transparency was flattened onto the background colour",
    "depth_scaled": "samples were scaled to 8 bits",
    "colour_converted": "colours were converted to sRGB",
    "first_frame_only": "only its first frame was scored",
}


def print_json(value: Any) -> None:
    """One line, so that many make JSON Lines."""
    sys.stdout.write(json.dumps(_plain(value), ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_table(table: Table, notes: Iterable[str] = ()) -> None:
    console = Console(highlight=False)
    # Into a pipe or file rich would cut lines at 80 columns.
    if not console.is_terminal:
        console = Console(highlight=False, width=240)
    console.print(table)
    for note in notes:
        console.print(Text(note, style="dim"))


def score_json(file: str, prompt: str, result: types.ScoreResult) -> dict[str, Any]:
    plain = _plain(result)
    scores = {score.pop("dimension"): score for score in plain.pop("scores")}
    return {"file": file, "prompt": prompt, "scores": scores, "image": plain["image"], "prompt_report": plain["prompt"]}


def score_table(file: str, result: types.ScoreResult, model: types.Model) -> Table:
    table = _table(f"{file} · {model.name} {model.version}")
    table.add_column("dimension")
    table.add_column("0 (worst) .. 1 (best)")
    table.add_column("calibrated", justify="right")
    table.add_column("percentile", justify="right")
    table.add_column("raw", justify="right")
    for score in result:
        table.add_row(
            score.dimension,
            _bar(score.calibrated),
            _number(score.calibrated),
            _number(score.percentile, 1),
            _number(score.raw, 4),
        )
    return table


def meanings(result: types.ScoreResult, model: types.Model) -> list[str]:
    """What each dimension judges, and what its percentile compares with, a line each."""
    dimensions = {dimension.name: dimension for dimension in model.dimensions}
    shown = [dimensions[score.dimension] for score in result if score.dimension in dimensions]
    lines = [f"{dimension.name}: {dimension.description}" for dimension in shown if dimension.description]
    populations: dict[str, list[str]] = {}
    for dimension in shown:
        if dimension.reference_population:
            populations.setdefault(dimension.reference_population, []).append(dimension.name)
    for population, names in populations.items():
        lines.append(f"percentile of {', '.join(names)}: the share of {population} that this picture beats or equals")
    return lines


def notes_on(result: types.ScoreResult) -> list[str]:
    """What was done to the picture and the prompt, one sentence a line."""
    notes = [text for flag, text in _REPORTED.items() if getattr(result.image, flag)]
    if result.prompt is not None and result.prompt.truncated:
        report = result.prompt
        notes.append(f"the prompt was cut: it has {report.token_count} tokens, the model reads {report.token_limit}")
    return [f"Note: {note}." for note in notes]


def many_table(rows: Sequence[tuple[str, types.ItemResult]]) -> Table:
    names = list(dict.fromkeys(score.dimension for _, row in rows if row.result for score in row.result))
    failed = any(row.error is not None for _, row in rows)
    table = _table(None)
    table.add_column("file", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
        table.add_column("percentile", justify="right")
    if failed:
        table.add_column("error", overflow="fold")
    for file, row in rows:
        scores = {score.dimension: score for score in row.result} if row.result is not None else {}
        cells = [cell for name in names for cell in _cells(scores.get(name))]
        table.add_row(Text(file), *cells, *([Text(str(row.error or ""), style="red")] if failed else []))
    return table


def rank_table(result: types.RankResult, names: Sequence[str]) -> Table:
    table = _table(f"by {result.dimension}")
    table.add_column("rank", justify="right")
    table.add_column("file", overflow="fold")
    table.add_column("calibrated", justify="right")
    table.add_column("raw", justify="right")
    others = list(dict.fromkeys(score.dimension for entry in result.ranking for score in entry.others))
    for name in others:
        table.add_column(name, justify="right")
        table.add_column("percentile", justify="right")
    noted = any(entry.error or entry.reason for entry in result.ranking)
    if noted:
        table.add_column("note", overflow="fold")
    for entry in result.ranking:
        score = entry.score
        calibrated = _number(score.calibrated) if score is not None else "-"
        raw = _number(score.raw, 4) if score is not None else "-"
        further = {score.dimension: score for score in entry.others}
        cells = [cell for name in others for cell in _cells(further.get(name))]
        note = [_rank_note(entry, names)] if noted else []
        table.add_row(str(entry.rank or "-"), Text(names[entry.index]), calibrated, raw, *cells, *note)
    return table


def _rank_note(entry: types.RankedImage, names: Sequence[str]) -> Text:
    if entry.error is not None:
        return Text(str(entry.error), style="red")
    if entry.similar_to is None:
        return Text(entry.reason)
    verb = "behind" if entry.rank else "left out for"
    return Text(f"{verb} {names[entry.similar_to]}: similarity {_number(entry.similarity)}")


def verdict_table(rows: Sequence[tuple[str, types.Verdict | CritiqError]], policy: types.PolicyInfo) -> Table:
    table = _table(f"{policy.name} {policy.version}")
    table.add_column("file", overflow="fold")
    table.add_column("decision")
    table.add_column("reasons", overflow="fold")
    styles = {"accept": "green", "review": "yellow", "reject": "red"}
    for file, row in rows:
        if isinstance(row, CritiqError):
            table.add_row(Text(file), "-", Text(f"failed: {row}", style="red"))
            continue
        reasons = "; ".join(dict.fromkeys(reason.message.removesuffix(".") for reason in row.reasons))
        table.add_row(Text(file), Text(row.decision, style=styles[row.decision]), Text(reasons))
    return table


def compare_table(result: types.CompareResult, first: str, second: str) -> Table:
    table = _table(None)
    table.add_column("dimension")
    table.add_column(Text(first), justify="right", overflow="fold")
    table.add_column(Text(second), justify="right", overflow="fold")
    table.add_column("better", overflow="fold")
    for entry in result.comparisons:
        better = {"first": first, "second": second, "tie": "tie"}[entry.preference]
        table.add_row(entry.dimension, _shown(entry.first), _shown(entry.second), Text(better))
    return table


def models_table(models: Sequence[types.Model]) -> Table:
    table = _table(None)
    for name in ("model", "version", "state", "dimensions", "title"):
        table.add_column(name, overflow="fold")
    for model in models:
        called = list(dict.fromkeys([*(["default"] if model.is_default else []), *model.aliases]))
        name = f"{model.name} ({', '.join(called)})" if called else model.name
        state = f"{model.state}: {model.state_reason}" if model.state_reason else model.state
        dimensions = ", ".join(dimension.name for dimension in model.dimensions)
        table.add_row(name, model.version, Text(state), dimensions, Text(model.title))
    return table


def model_table(model: types.Model) -> Table:
    table = _table(f"{model.name} {model.version} · {model.title} · {model.state}")
    for name in ("dimension", "raw range", "direction", "scope", "needs a prompt", "description"):
        table.add_column(name, overflow="fold")
    for dimension in model.dimensions:
        table.add_row(
            dimension.name,
            f"{_number(dimension.minimum)} .. {_number(dimension.maximum)}",
            dimension.direction.replace("_", " "),
            dimension.scope.replace("_", " "),
            "yes" if dimension.needs_prompt else "no",
            Text(dimension.description),
        )
    return table


def model_notes(model: types.Model) -> list[str]:
    """The rest of what is known about a model."""
    notes = [model.description] if model.description else []
    if model.state_reason:
        notes.append(f"State: {model.state}: {model.state_reason}")
    notes += [
        f"Stage {stage.name}: {stage.runtime}, {stage.provider or 'not loaded'}, batches up to {stage.max_batch}"
        + (f"; asks {stage.lmm} {stage.instruction}, if not stored: {stage.on_miss}" if stage.lmm else "")
        for stage in model.stages
    ]
    licence = model.licence
    return [*notes, f"Licences: code {licence.code}, weights {licence.weights}, data {licence.data}"]


def _table(title: str | None) -> Table:
    return Table(title=Text(title) if title else None, title_justify="left", title_style="bold")


def _cells(score: types.Score | None) -> tuple[str, str]:
    return ("-", "-") if score is None else (_shown(score), _number(score.percentile, 1))


def _shown(score: types.Score) -> str:
    """The calibrated value; the raw one where there is none; flagged if a fallback head gave it."""
    value = _number(score.calibrated) if score.calibrated is not None else f"raw {_number(score.raw, 4)}"
    return f"{value} (degraded)" if score.degraded else value


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _bar(value: float | None) -> Text:
    if value is None:
        return Text("-")
    full = round(_BAR_CELLS * min(1.0, max(0.0, value)))
    style = "green" if value >= 2 / 3 else "yellow" if value >= 1 / 3 else "red"
    return Text("█" * full, style=style) + Text("░" * (_BAR_CELLS - full), style="dim")


def _plain(value: Any) -> Any:
    if isinstance(value, CritiqError):
        return {"code": value.code, "message": value.message, "field": value.field}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
