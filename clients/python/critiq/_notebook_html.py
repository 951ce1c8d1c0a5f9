"""Results as HTML for notebooks. Styles stand in the elements and take the text's colour: they fit light and dark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from critiq import types
from critiq._notebook import thumbnails_of

MOST_ROWS = 200

_GOOD, _FAIR, _POOR = "#2a9d6f", "#c98a12", "#d1495b"
_FAINT = "color-mix(in srgb, currentColor 18%, transparent)"
_CELL = f"padding:4px 10px;text-align:left;vertical-align:middle;border-bottom:1px solid {_FAINT}"


def html(value: Any) -> str:
    """The table of one result."""
    if isinstance(value, types.ScoreResult):
        return _scored(value)
    if isinstance(value, types.ItemResult):
        return items([value])
    if isinstance(value, types.RankResult):
        return _ranked(value)
    return _compared(value)


def items(values: Sequence[types.ItemResult]) -> str:
    """The table of a batch: a row for each picture."""
    names = list(dict.fromkeys(score.dimension for value in values if value.result for score in value.result))
    pictured = any(value.result and thumbnails_of(value.result) for value in values)
    body = []
    for value in values[:MOST_ROWS]:
        picture = [_picture(thumbnails_of(value.result) if value.result else (), 0)] if pictured else []
        if value.result is None:
            body.append(_row([*picture, escape(value.id), _error(value.error)], span=max(1, len(names))))
            continue
        scores = {score.dimension: score for score in value.result}
        body.append(_row([*picture, escape(value.id), *(_bar(scores.get(name)) for name in names)]))
    more = len(values) - MOST_ROWS
    note = f"{more} more are not shown" if more > 0 else ""
    return _table([*([""] if pictured else []), "id", *names], body, f"{len(values)} pictures", note)


def _scored(value: types.ScoreResult) -> str:
    body = [
        _row([escape(score.dimension), _bar(score), _number(score.percentile, 1), _number(score.raw, 4)])
        for score in value
    ]
    report = value.image
    size = f"{escape(report.format)}, {report.width} x {report.height} pixels"
    prompt = value.prompt
    note = f"the prompt was cut to {prompt.token_limit} tokens" if prompt is not None and prompt.truncated else ""
    models = ", ".join(dict.fromkeys(f"{score.model} {score.model_version}" for score in value))
    table = _table(["dimension", "0 (worst) .. 1 (best)", "percentile", "raw"], body, f"{models}; {size}", note)
    thumbnails = thumbnails_of(value)
    if not thumbnails or not thumbnails[0]:
        return table
    return f'<div style="display:flex;gap:14px;align-items:center">{_picture(thumbnails, 0)}{table}</div>'


def _ranked(value: types.RankResult) -> str:
    others = list(dict.fromkeys(score.dimension for entry in value.ranking for score in entry.others))
    thumbnails = thumbnails_of(value)
    noted = any(entry.reason or entry.error for entry in value.ranking)
    body = []
    for entry in value.ranking[:MOST_ROWS]:
        further = {score.dimension: score for score in entry.others}
        cells = [str(entry.rank or "-"), *([_picture(thumbnails, entry.index)] if thumbnails else []), str(entry.index)]
        cells += [_bar(entry.score), *(_bar(further.get(name)) for name in others)]
        cells += [_error(entry.error) if entry.error is not None else escape(entry.reason)] if noted else []
        body.append(_row(cells, faint=not entry.rank))
    head = ["rank", *([""] if thumbnails else []), "picture", value.dimension, *others, *(["note"] if noted else [])]
    return _table(head, body, f"ranked by {value.dimension}")


def _compared(value: types.CompareResult) -> str:
    body = []
    for entry in value.comparisons:
        better = {"first": "the first", "second": "the second", "tie": "neither"}[entry.preference]
        body.append(_row([escape(entry.dimension), _bar(entry.first), _bar(entry.second), better]))
    thumbnails = thumbnails_of(value)
    if any(thumbnails):
        body.insert(0, _row(["", _picture(thumbnails, 0), _picture(thumbnails, 1), ""]))
    return _table(["dimension", "first", "second", "better"], body, "two pictures compared")


def _table(head: Iterable[str], body: Iterable[str], caption: str, note: str = "") -> str:
    columns = "".join(f'<th scope="col" style="{_CELL};font-weight:600">{escape(name)}</th>' for name in head)
    small = f'<div style="opacity:.75;padding:4px 10px">{escape(note)}</div>' if note else ""
    title = (
        f'<caption style="caption-side:top;text-align:left;padding:4px 10px;color:inherit">{escape(caption)}</caption>'
    )
    style = "border-collapse:collapse;color:inherit;background:transparent;font-variant-numeric:tabular-nums"
    return (
        f'<div><table style="{style}">{title}<thead><tr>{columns}</tr></thead><tbody>{"".join(body)}</tbody></table>'
        f"{small}</div>"
    )


def _row(cells: Sequence[str], span: int = 1, *, faint: bool = False) -> str:
    """A row of cells that are HTML already; the last spans ``span`` columns."""
    spans = [1] * (len(cells) - 1) + [span]
    inner = "".join(
        f'<td style="{_CELL}"{f" colspan={columns}" if columns > 1 else ""}>{cell}</td>'
        for cell, columns in zip(cells, spans, strict=True)
    )
    return f'<tr style="background:transparent{";opacity:.6" if faint else ""}">{inner}</tr>'


def _bar(score: types.Score | None) -> str:
    """A score as a bar and its number; the raw value alone where there is no calibration."""
    if score is None:
        return "-"
    flagged = " (degraded)" if score.degraded else ""
    if score.calibrated is None:
        return f"raw {score.raw:.4f}{flagged}"
    value = min(1.0, max(0.0, score.calibrated))
    colour = _GOOD if value >= 2 / 3 else _FAIR if value >= 1 / 3 else _POOR
    track = f"display:inline-block;width:90px;height:10px;border-radius:5px;background:{_FAINT};margin-right:8px"
    fill = f"display:block;width:{100 * value:.1f}%;height:10px;border-radius:5px;background:{colour}"
    label = f"{score.dimension} {score.calibrated:.3f} of 1"
    bar = f'<span role="img" aria-label="{escape(label)}" style="{track}"><span style="{fill}"></span></span>'
    return f'<span style="white-space:nowrap">{bar}{score.calibrated:.3f}{flagged}</span>'


def _picture(thumbnails: Sequence[str], index: int) -> str:
    url = thumbnails[index] if index < len(thumbnails) else ""
    # The text is ours (base64 of a JPEG), not the caller's; still it stands in an attribute.
    return f'<img src="{escape(url)}" alt="picture {index}" style="max-width:96px;max-height:96px">' if url else ""


def _error(error: Any) -> str:
    return f'<span style="color:{_POOR}">{escape(f"{error.code}: {error}")}</span>' if error is not None else ""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
