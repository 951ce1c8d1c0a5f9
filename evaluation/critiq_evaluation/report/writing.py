"""Writes a report's files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from critiq_evaluation.judging import Comparison, Evaluation
from critiq_evaluation.report.data import About, as_json, pictures_csv, results_csv
from critiq_evaluation.report.figures import Drawing, group_bars, scatter
from critiq_evaluation.report.formats import latex, markdown
from critiq_evaluation.report.page import Contents, page
from critiq_evaluation.report.tables import tables
from critiq_evaluation.report.worst import contact_sheet


def write_report(evaluation: Evaluation, about: About, images: Path, out: Path) -> list[Path]:
    """Writes all of these into ``out`` (made if need be), and returns their paths, the HTML report first.

    - ``report.html``: everything, in one file
    - ``tables.md``, ``tables.tex``: the tables
    - ``results.json``, ``results.csv``: the figures; ``pictures.csv``: single pictures
    - ``figures/*.svg``: scatter plots and bars; ``figures/worst_*.jpg``: contact sheets
    """
    contents = Contents(tables(evaluation), _scatters(evaluation.comparisons), _bars(evaluation.comparisons))
    texts = {
        "report.html": page(evaluation, contents, about, images),
        "tables.md": _heading(evaluation, about) + markdown(contents.tables),
        "tables.tex": latex(contents.tables),
        "results.json": as_json(evaluation, about),
        "results.csv": results_csv(evaluation),
        "pictures.csv": pictures_csv(evaluation),
    }
    texts |= {f"figures/{drawing.name}.svg": drawing.svg for drawing in (*contents.scatters, *contents.bars)}
    (out / "figures").mkdir(parents=True, exist_ok=True)
    for pattern in ("scatter_*.svg", "bars_*.svg", "worst_*.jpg"):  # of an earlier report in the same place
        for path in (out / "figures").glob(pattern):
            path.unlink()
    written = []
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
        written.append(out / name)
    for place, entry in enumerate(evaluation.comparisons, 1):
        sheet = contact_sheet(entry, images)
        if sheet is not None:
            path = out / "figures" / f"worst_{place}.jpg"
            sheet.save(path, quality=88)
            written.append(path)
    return written


def _heading(evaluation: Evaluation, about: About) -> str:
    note = f"{about.note}\n\n" if about.note else ""
    return f"# Agreement with people on {evaluation.dataset.name}\n\n{note}"


def _scatters(comparisons: Sequence[Comparison]) -> list[Drawing]:
    drawn = (scatter(entry, f"scatter_{place + 1}", place) for place, entry in enumerate(comparisons))
    return [drawing for drawing in drawn if drawing is not None]


def _bars(comparisons: Sequence[Comparison]) -> list[Drawing]:
    """One figure for each rating and group, with all models that were held against that rating."""
    found: list[Drawing | None] = []
    for rating in dict.fromkeys(entry.pair.rating for entry in comparisons):
        chosen = [(place, entry) for place, entry in enumerate(comparisons) if entry.pair.rating == rating]
        entries, places = [entry for _, entry in chosen], [place for place, _ in chosen]
        for group in entries[0].groups:
            found.append(group_bars(entries, group, f"bars_{len(found) + 1}", places))
    return [drawing for drawing in found if drawing is not None]
