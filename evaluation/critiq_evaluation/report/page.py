"""The report as one HTML file: no script, nothing loaded from elsewhere, light or dark as the reader has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from critiq_evaluation.judging import Comparison, Evaluation, Point, PreferenceResult
from critiq_evaluation.report.data import About
from critiq_evaluation.report.figures import Drawing
from critiq_evaluation.report.tables import Table
from critiq_evaluation.report.worst import data_uri, thumbnail, worst_cases

_HERE = Path(__file__).parent
_MOST_ROWS = 100
_COLOURS = 6
_FORMULAS = {
    "logistic4": "(b1 − b2) / (1 + exp(−(x − b3) / b4)) + b2",
    "logistic4-sjtu": "b2 + (b1 − b2) / (1 + exp(−(x − b3) / |b4|))",
    "logistic5": "b1 (0.5 − 1 / (1 + exp(b2 (x − b3)))) + b4 x + b5 of the standardised score",
    "logistic5-pyiqa": "b1 (0.5 − 1 / (1 + exp(b2 (x − b3)))) + b4 x + b5 from pyiqa's start",
}


@dataclass(frozen=True)
class Contents:
    """What the page shows beside the evaluation's own texts."""

    tables: Sequence[Table]
    scatters: Sequence[Drawing]
    bars: Sequence[Drawing]


def page(evaluation: Evaluation, contents: Contents, about: About, images: Path) -> str:
    """The HTML document; thumbnails of the worst cases are read from ``images``."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=False
    )
    worst = [_worst(entry, place, images) for place, entry in enumerate(evaluation.comparisons)]
    worst = [entry for entry in worst if entry["over"] or entry["under"]]
    dataset = evaluation.dataset
    ratings = list(dict.fromkeys(entry.pair.rating for entry in evaluation.comparisons))
    sections = [("compared", "What was compared")]
    sections += [(f"rating-{place}", rating.capitalize()) for place, rating in enumerate(ratings, 1)]
    if any(not table.rating for table in contents.tables):
        sections.append(("models", "Models against each other" if ratings else "Results"))
    sections += [("worst", "Worst cases")] if worst else []
    sections += [("problems", "Problems"), ("how", "How it was computed")]
    return environment.get_template("report.html").render(
        title=f"Agreement with people on {dataset.name}",
        subtitle=_subtitle(evaluation),
        style=(_HERE / "report.css").read_text(encoding="utf-8"),
        sections=sections,
        ratings=ratings,
        cards=[_card(entry, place) for place, entry in enumerate(evaluation.comparisons)]
        + [_preference_card(entry, place) for place, entry in enumerate(evaluation.preferences)],
        alerts=[about.note] * bool(about.note) + _alerts(evaluation),
        compared=[_compared(entry, evaluation) for entry in evaluation.comparisons]
        + [_preferred(entry) for entry in evaluation.preferences],
        tables=contents.tables,
        scatters=contents.scatters,
        bars=contents.bars,
        worst=worst,
        problems=dataset.problems[:_MOST_ROWS],
        problem_count=len(dataset.problems),
        failures=_failures(evaluation),
        fit=evaluation.fit,
        formula=_FORMULAS.get(evaluation.fit, ""),
        rules=_rules(evaluation),
        settings=about.settings,
        version=about.critiq,
        created=about.created,
    )


def _subtitle(evaluation: Evaluation) -> str:
    dataset = evaluation.dataset
    what = [f"{len(dataset.pictures)} rated pictures"] if dataset.pictures else []
    what += [f"{len(dataset.preferences)} preference pairs"] if dataset.preferences else []
    entries: list[Comparison | PreferenceResult] = [*evaluation.comparisons, *evaluation.preferences]
    models = dict.fromkeys(entry.model for entry in entries)
    return f"{' and '.join(what)}, scored by {', '.join(models)}"


def _series(place: int) -> int:
    return place % _COLOURS + 1


def _card(entry: Comparison, place: int) -> dict[str, Any]:
    row = entry.whole
    srcc = row.agreement.srcc
    card = {
        "series": _series(place),
        "title": entry.title,
        "figure": "not defined" if srcc is None else f"{srcc:.3f}",
        "meaning": f"SRCC with people's {entry.pair.rating}",
        "detail": row.agreement.reason or f"{row.agreement.count} pictures",
    }
    if row.srcc_interval is not None:
        limits = f"95 %: {row.srcc_interval.low:.3f} to {row.srcc_interval.high:.3f}"
        card["detail"] = f"{limits} · {row.agreement.count} pictures"
    if entry.within_prompt and entry.ranking is not None and entry.ranking.accuracy is not None:
        card["figure"] = f"{entry.ranking.accuracy:.1%}"
        card["meaning"] = f"of pairs of one prompt ordered as by people's {entry.pair.rating}"
        card["detail"] = f"{entry.ranking.pairs} pairs of {entry.ranking.groups} prompts"
    return card


def _preference_card(entry: PreferenceResult, place: int) -> dict[str, Any]:
    found = entry.accuracy
    detail = f"{found.pairs} pairs"
    if found.low is not None and found.high is not None:
        detail = f"95 %: {found.low:.3f} to {found.high:.3f} · {detail}"
    return {
        "series": _series(place),
        "title": entry.title,
        "figure": "not defined" if found.accuracy is None else f"{found.accuracy:.1%}",
        "meaning": "of pairs judged as people did",
        "detail": found.reason or detail,
    }


def _alerts(evaluation: Evaluation) -> list[str]:
    """What a reader must know before any figure."""
    found = []
    dataset = evaluation.dataset
    if dataset.problems:
        found.append(f"The dataset has {len(dataset.problems)} problem(s): see Problems.")
    for entry in evaluation.comparisons:
        agreement = entry.whole.agreement
        if entry.whole.missing:
            total = entry.whole.missing + agreement.count
            found.append(f"{entry.title} has no score for {entry.whole.missing} of {total} pictures: see Problems.")
        if agreement.srcc is None:
            found.append(f"{entry.title}: no correlation is defined: {agreement.reason}.")
        elif agreement.srcc < 0:
            found.append(f"{entry.title} ranks against people: SRCC is {agreement.srcc:.3f}.")
        if agreement.srcc is not None and agreement.fit.state == "failed":
            found.append(f"{entry.title}: fit: failed. {agreement.fit.reason}.")
        if entry.within_prompt:
            found.append(
                f"{entry.title} compares pictures of one prompt only: read the table of orders within prompts, not the "
                "correlations over all pictures."
            )
    return found


def _compared(entry: Comparison, evaluation: Evaluation) -> dict[str, str]:
    scale = evaluation.dataset.scales[entry.pair.rating]
    better = "higher" if scale.higher_is_better else "lower"
    directions = ["scores are negated: for this dimension lower is better"] if entry.negated else []
    directions += ["ratings are negated: on this scale lower is better"] if entry.rating_negated else []
    return {
        "model": entry.model,
        "dimension": entry.pair.dimension,
        "rating": entry.pair.rating,
        "scale": f"{scale.minimum:g} to {scale.maximum:g}, {better} is better",
        "why": entry.pair.why,
        "direction": "; ".join(directions) or "higher is better on both sides",
    }


def _preferred(entry: PreferenceResult) -> dict[str, str]:
    return {
        "model": entry.model,
        "dimension": entry.dimension,
        "rating": "preference",
        "scale": "the better of two pictures",
        "why": "every dimension is held against preferences",
        "direction": "higher is better",
    }


def _worst(entry: Comparison, place: int, images: Path) -> dict[str, Any]:
    cases = worst_cases(entry)
    return {
        "series": _series(place),
        "title": entry.title,
        "rating": entry.pair.rating,
        "over": [_case(point, images) for point in cases.overrated],
        "under": [_case(point, images) for point in cases.underrated],
    }


def _case(point: Point, images: Path) -> dict[str, str]:
    picture = thumbnail(images, point.image)
    return {
        "picture": "" if picture is None else data_uri(picture),
        "name": point.image,
        "prompt": point.prompt,
        "model": f"{point.score_rank:.0%}",
        "people": f"{point.rating_rank:.0%}",
        "score": f"{point.score:.4g}",
        "rating": f"{point.rating:.4g}",
    }


def _failures(evaluation: Evaluation) -> list[dict[str, Any]]:
    entries: list[Comparison | PreferenceResult] = [*evaluation.comparisons, *evaluation.preferences]
    return [
        {"title": entry.title, "count": len(entry.failures), "rows": list(entry.failures.items())[:_MOST_ROWS]}
        for entry in entries
        if entry.failures
    ]


def _rules(evaluation: Evaluation) -> list[str]:
    if not evaluation.comparisons:
        return []
    return [f"Protocol {result.plan.protocol}: {result.plan.rule}." for result in evaluation.comparisons[0].plans]
