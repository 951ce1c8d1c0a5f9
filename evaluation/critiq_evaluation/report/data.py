"""An evaluation for programs: a JSON document, and two CSV files, of results and of pictures."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from critiq_evaluation.judging import FIGURES, Comparison, Evaluation, PlanResult, Row
from critiq_evaluation.statistics import Interval

_COLUMNS = (
    "model",
    "dimension",
    "rating",
    "protocol",
    "part",
    "pictures",
    "missing",
    *FIGURES,
    "srcc_low",
    "srcc_high",
    "plcc_fitted_low",
    "plcc_fitted_high",
    "fit",
    "fit_state",
    "reason",
)


@dataclass(frozen=True)
class About:
    """How an evaluation came about: ``settings`` by name, in the words of the command line.

    ``note`` is what a reader must know first, for instance that ratings are not of people.
    """

    created: str
    critiq: str
    settings: Mapping[str, str]
    note: str = ""


def as_json(evaluation: Evaluation, about: About) -> str:
    """Everything but single pictures, which :func:`pictures_csv` has. What is not defined is ``null``, never NaN."""
    dataset = evaluation.dataset
    document = {
        "created": about.created,
        "critiq": about.critiq,
        "settings": dict(about.settings),
        "note": about.note,
        "dataset": {
            "name": dataset.name,
            "pictures": len(dataset.pictures),
            "preferences": len(dataset.preferences),
            "scales": {name: asdict(scale) for name, scale in dataset.scales.items()},
            "problems": [asdict(problem) for problem in dataset.problems],
        },
        "fit": evaluation.fit,
        "comparisons": [_comparison(entry) for entry in evaluation.comparisons],
        "preferences": [
            {
                "model": entry.model,
                "dimension": entry.dimension,
                "accuracy": asdict(entry.accuracy),
                "missing": entry.missing,
                "groups": {
                    name: {value: asdict(one) for value, one in of.items()} for name, of in entry.groups.items()
                },
                "failures": dict(entry.failures),
            }
            for entry in evaluation.preferences
        ],
        "versus": [asdict(entry) for entry in evaluation.versus],
    }
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def results_csv(evaluation: Evaluation) -> str:
    """A row for each model, dimension, rating, protocol and part."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    for entry in evaluation.comparisons:
        for protocol, row in _places(entry):
            found = row.agreement
            writer.writerow(
                {
                    "model": entry.model,
                    "dimension": entry.pair.dimension,
                    "rating": entry.pair.rating,
                    "protocol": protocol,
                    "part": row.part,
                    "pictures": found.count,
                    "missing": row.missing,
                    **{name: getattr(found, name) for name in FIGURES},
                    **_limits("srcc", row.srcc_interval),
                    **_limits("plcc_fitted", row.plcc_interval),
                    "fit": found.fit.name,
                    "fit_state": found.fit.state,
                    "reason": found.reason or found.fit.reason,
                }
            )
    return text.getvalue()


def pictures_csv(evaluation: Evaluation) -> str:
    """A row for each picture and comparison: score (higher is better), rating, both ranks, 0 (worst) .. 1 (best)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["image", "prompt", "model", "dimension", "rating_name", "score", "rating", "score_rank", "rating_rank"]
    )
    for entry in evaluation.comparisons:
        for point in entry.points:
            writer.writerow(
                [
                    point.image,
                    point.prompt,
                    entry.model,
                    entry.pair.dimension,
                    entry.pair.rating,
                    point.score,
                    point.rating,
                    f"{point.score_rank:.6f}",
                    f"{point.rating_rank:.6f}",
                ]
            )
    return text.getvalue()


def _places(entry: Comparison) -> Iterator[tuple[str, Row]]:
    yield "all", entry.whole
    for result in entry.plans:
        if result.plan.protocol != "all":
            for row in (*result.rows, *result.repeats):
                yield result.plan.protocol, row
    for name, rows in entry.groups.items():
        for row in rows:
            yield f"by {name}", row


def _comparison(entry: Comparison) -> dict[str, Any]:
    return {
        "model": entry.model,
        **asdict(entry.pair),
        "negated": entry.negated,
        "rating_negated": entry.rating_negated,
        "within_prompt": entry.within_prompt,
        "whole": asdict(entry.whole),
        "ranking": None if entry.ranking is None else asdict(entry.ranking),
        "protocols": [_plan(result) for result in entry.plans],
        "groups": {name: [asdict(row) for row in rows] for name, rows in entry.groups.items()},
        "failures": dict(entry.failures),
    }


def _plan(result: PlanResult) -> dict[str, Any]:
    return {
        "protocol": result.plan.protocol,
        "rule": result.plan.rule,
        "notes": list(result.plan.notes),
        "parts": [asdict(row) for row in result.rows],
        "repeats": [asdict(row) for row in result.repeats],
        "spread": {name: asdict(spread) for name, spread in result.spread.items()},
    }


def _limits(name: str, interval: Interval | None) -> dict[str, float]:
    return {} if interval is None else {f"{name}_low": interval.low, f"{name}_high": interval.high}
