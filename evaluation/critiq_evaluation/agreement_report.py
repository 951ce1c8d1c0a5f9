"""What is written of the agreement between models: tables, a heat map, and the pictures on which models differ most."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from critiq_evaluation.agreement import AgreementOfModels, Disagreement, Pair
from critiq_evaluation.report.worst import thumbnail

_SIDE, _GAP, _TITLE, _CAPTION = 200, 12, 26, 36
SHOWN_PAIRS, SHOWN_PICTURES = 8, 6


def write_agreement(found: AgreementOfModels, images: Path, out: Path) -> list[Path]:
    """Writes ``agreement.md``, ``.json``, ``pairs.csv``, ``pictures.csv``, ``heatmap.png`` and ``disagreement.jpg``.

    The last is left out where no two models have a correlation. Returns the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    written = [out / "agreement.md", out / "agreement.json", out / "pairs.csv", out / "pictures.csv"]
    written[0].write_text(markdown(found), "utf-8")
    written[1].write_text(json.dumps(document(found), indent=2, ensure_ascii=False) + "\n", "utf-8")
    rows = _pair_rows(found)
    _csv(written[2], list(rows[0]), (row.values() for row in rows))
    _csv(written[3], ["image", "prompt", *(series.title for series in found.series)], _picture_rows(found))
    heatmap(found).savefig(out / "heatmap.png", dpi=150)
    written.append(out / "heatmap.png")
    sheet = contact_sheet(found, images)
    if sheet is not None:
        sheet.save(out / "disagreement.jpg", quality=90)
        written.append(out / "disagreement.jpg")
    return written


def markdown(found: AgreementOfModels) -> str:
    """The matrix of SRCC, the pairs with intervals, and the pictures on which each pair of models differs most."""
    titles = [series.title for series in found.series]
    lines = ["# Agreement between models", "", f"SRCC on {found.pictures} pictures; 95 % bootstrap intervals.", ""]
    lines += [_row(["", *titles]), _row(["---", *["---:"] * len(titles)])]
    for i, title in enumerate(titles):
        lines.append(_row([title, *(_number(found.srcc(i, j)) for j in range(len(titles)))]))
    lines += ["", _row(["first", "second", "pictures", "SRCC", "interval", ""]), _row(["---"] * 6)]
    for pair in found.pairs:
        interval = f"{pair.interval.low:.4f} to {pair.interval.high:.4f}" if pair.interval else ""
        said = "; ".join(text for text in (pair.reason, *pair.notes) if text)
        lines.append(_row([pair.first.title, pair.second.title, str(pair.count), _number(pair.srcc), interval, said]))
    for pair in found.least_agreeing()[:SHOWN_PAIRS]:
        lines += ["", f"## {_cell(pair.first.title)} and {_cell(pair.second.title)} differ most on", ""]
        lines += [_row(["picture", "rank by the first", "by the second"]), _row(["---", "---:", "---:"])]
        lines += [_row([d.image, f"{d.first:.0%}", f"{d.second:.0%}"]) for d in _most_apart(pair)]
    if found.left_out:
        lines += ["", f"Left out, as no picture has a prompt: {', '.join(map(_cell, found.left_out))}."]
    missing = [series for series in found.series if series.missing]
    if missing:
        lines += ["", "## Without a score", ""]
        for series in missing:
            asked, why = next(iter(series.missing.items()))
            lines.append(
                f"- {_cell(series.title)}: {len(series.missing)}, the first {_cell(asked.image)}: {_cell(why)}"
            )
    return "\n".join(lines) + "\n"


def document(found: AgreementOfModels) -> dict[str, Any]:
    """All of it as JSON; ranks are 0 (worst) to 1 (best)."""
    return {
        "pictures": found.pictures,
        "left_out": list(found.left_out),
        "series": [
            {
                "model": series.model,
                "dimension": series.dimension,
                "scored": len(series.values),
                "missing": {asked.image: why for asked, why in series.missing.items()},
            }
            for series in found.series
        ],
        "pairs": [
            {
                "first": {"model": pair.first.model, "dimension": pair.first.dimension},
                "second": {"model": pair.second.model, "dimension": pair.second.dimension},
                "pictures": pair.count,
                "srcc": pair.srcc,
                "interval": asdict(pair.interval) if pair.interval else None,
                "reason": pair.reason,
                "notes": list(pair.notes),
                "most_apart": [asdict(entry) for entry in _most_apart(pair)],
            }
            for pair in found.pairs
        ],
    }


def heatmap(found: AgreementOfModels) -> Figure:
    """SRCC of every two series, each cell with its figure; grey where there is none."""
    titles = [f"{series.model}\n{series.dimension}" for series in found.series]
    count = len(titles)
    cells = [[found.srcc(i, j) for j in range(count)] for i in range(count)]
    values = np.array([[np.nan if cell is None else cell for cell in row] for row in cells])
    side = 2.4 + 0.75 * count
    with mpl.rc_context({"text.parse_math": False, "font.size": 8}):
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.add_subplot()
        axes.set_facecolor("#d0d4d9")
        shown = axes.imshow(values, vmin=-1, vmax=1, cmap="RdBu")
        axes.set_xticks(range(count), titles, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(count), titles)
        for i in range(count):
            for j in range(count):
                value = cells[i][j]
                colour = "white" if value is not None and abs(value) > 0.6 else "black"
                axes.text(j, i, "–" if value is None else f"{value:.2f}", ha="center", va="center", color=colour)
        figure.colorbar(shown, ax=axes, label="SRCC", shrink=0.8)
    return figure


def contact_sheet(found: AgreementOfModels, images: Path) -> Image.Image | None:
    """A row for each of the pairs of models that agree least: pictures whose ranks differ most, with both ranks."""
    pairs = [pair for pair in found.least_agreeing() if _most_apart(pair)][:SHOWN_PAIRS]
    if not pairs:
        return None
    height = _TITLE + _SIDE + _CAPTION + _GAP
    sheet = Image.new("RGB", (SHOWN_PICTURES * (_SIDE + _GAP) + _GAP, len(pairs) * height + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)
    for place, pair in enumerate(pairs):
        top = _GAP + place * height
        title = f"{pair.first.title}  /  {pair.second.title}: SRCC {_number(pair.srcc)}"
        draw.text((_GAP, top), title, "black", font)
        for column, entry in enumerate(_most_apart(pair)):
            left = _GAP + column * (_SIDE + _GAP)
            picture = thumbnail(images, entry.image, _SIDE)
            if picture is not None:
                corner = (left + (_SIDE - picture.width) // 2, top + _TITLE + (_SIDE - picture.height) // 2)
                sheet.paste(picture, corner)
            below = top + _TITLE + _SIDE + 4
            draw.text((left, below), entry.image[-32:], "black", small)
            draw.text((left, below + 15), f"rank {entry.first:.0%}  /  {entry.second:.0%}", "black", small)
    return sheet


def _most_apart(pair: Pair) -> Sequence[Disagreement]:
    """The first few; pictures that both place alike are none."""
    return [entry for entry in pair.apart[:SHOWN_PICTURES] if entry.first != entry.second]


def _pair_rows(found: AgreementOfModels) -> list[dict[str, object]]:
    return [
        {
            "first_model": pair.first.model,
            "first_dimension": pair.first.dimension,
            "second_model": pair.second.model,
            "second_dimension": pair.second.dimension,
            "pictures": pair.count,
            "srcc": pair.srcc,
            "low": pair.interval.low if pair.interval else None,
            "high": pair.interval.high if pair.interval else None,
            "reason": "; ".join(text for text in (pair.reason, *pair.notes) if text),
        }
        for pair in found.pairs
    ]


def _picture_rows(found: AgreementOfModels) -> Iterable[list[object]]:
    asked = dict.fromkeys(asked for series in found.series for asked in (*series.values, *series.missing))
    for one in sorted(asked, key=lambda each: each.image):
        yield [one.image, one.prompt, *(series.values.get(one) for series in found.series)]


def _csv(path: Path, header: Sequence[str], rows: Iterable[Iterable[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
