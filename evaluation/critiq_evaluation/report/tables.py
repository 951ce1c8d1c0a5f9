"""Tables in the papers' shape: models down, parts of the dataset across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from critiq_evaluation.judging import Comparison, Evaluation, PlanResult, Row, Spread
from critiq_evaluation.statistics import Interval

NOTHING = "–"
_PARTS_ACROSS = 3
"""More parts than that stand below each other, or the table is too wide to read."""


@dataclass(frozen=True)
class Cell:
    """``best``: the best of its column; ``detail``: an interval or a spread."""

    text: str
    detail: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """``spans`` are headings over the columns: text and number of columns; the first columns are labels.

    ``rating`` is the one that the table is about; empty if it is about several.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    labels: int = 1
    spans: tuple[tuple[str, int], ...] = ()
    notes: tuple[str, ...] = ()
    rating: str = ""


@dataclass(frozen=True)
class _Figure:
    name: str
    title: str
    largest: bool = True


_FIGURES = (
    _Figure("srcc", "SRCC"),
    _Figure("krcc", "KRCC"),
    _Figure("plcc", "PLCC raw"),
    _Figure("plcc_fitted", "PLCC fitted"),
    _Figure("rmse", "RMSE", largest=False),
)
_ALIGNMENT = ("alignment", "correspondence")
"""Ratings of how well a picture matches its prompt, whose agreement is stated by tau-c as well."""
_WITH_TAU_C = (*_FIGURES[:2], _Figure("tau_c", "tau-c"), *_FIGURES[2:])
_SHORT = tuple(figure for figure in _FIGURES if figure.name in ("srcc", "krcc", "plcc_fitted"))


def tables(evaluation: Evaluation) -> list[Table]:
    """All tables, in the order of the report."""
    found = []
    for rating in dict.fromkeys(entry.pair.rating for entry in evaluation.comparisons):
        chosen = [entry for entry in evaluation.comparisons if entry.pair.rating == rating]
        found += [replace(table, rating=rating) for table in _of_rating(chosen, rating)]
    if evaluation.versus:
        found.append(_versus(evaluation))
    if evaluation.preferences:
        found += _preferences(evaluation)
    return found


def _of_rating(chosen: Sequence[Comparison], rating: str) -> list[Table]:
    found = [_whole(chosen, rating)]
    for index in range(len(chosen[0].plans)):
        results = [entry.plans[index] for entry in chosen]
        # All pictures at once are in the first table already.
        if results[0].plan.protocol != "all":
            found += _protocol(chosen, results, rating)
    if any(entry.ranking for entry in chosen):
        found.append(_ranking(chosen, rating))
    return found + _groups(chosen, rating)


def number(value: float | None, places: int = 4) -> str:
    return NOTHING if value is None else f"{value:.{places}f}"


def _whole(chosen: Sequence[Comparison], rating: str) -> Table:
    rows = [entry.whole for entry in chosen]
    figures = _WITH_TAU_C if rating in _ALIGNMENT else _FIGURES
    columns = [_column(rows, figure) for figure in figures]
    notes = []
    for entry in chosen:
        agreement = entry.whole.agreement
        if agreement.reason:
            notes.append(f"{entry.title}: {agreement.reason}")
        elif agreement.fit.state == "failed":
            notes.append(f"{entry.title}: fit: failed ({agreement.fit.name}): {agreement.fit.reason}")
        notes += [f"{entry.title}: {note}" for note in agreement.notes if note != agreement.fit.note]
        if agreement.fit.note:
            notes.append(f"* {entry.title}: {agreement.fit.note}")
        if entry.whole.missing:
            notes.append(f"{entry.title}: without a score: {entry.whole.missing} picture(s)")
    return Table(
        title=f"Agreement with {rating}, all pictures",
        header=("model", "dimension", "pictures", *(figure.title for figure in figures), "fit"),
        rows=tuple(
            (
                Cell(entry.model),
                Cell(entry.pair.dimension),
                Cell(str(row.agreement.count)),
                *(column[place] for column in columns),
                Cell(row.agreement.fit.name if row.agreement.fit.state == "ok" else "failed"),
            )
            for place, (entry, row) in enumerate(zip(chosen, rows, strict=True))
        ),
        labels=2,
        notes=tuple(notes),
    )


def _protocol(chosen: Sequence[Comparison], results: Sequence[PlanResult], rating: str) -> list[Table]:
    found = []
    plan = results[0].plan
    if plan.parts:
        found.append(
            _parts(f"Agreement with {rating}, protocol {plan.protocol}", chosen, [r.rows for r in results], plan.notes)
        )
    if plan.repeats:
        found.append(_repeats(f"Agreement with {rating}, protocol {plan.protocol}", chosen, results))
    return found


def _parts(title: str, chosen: Sequence[Comparison], rows: Sequence[Sequence[Row]], notes: tuple[str, ...]) -> Table:
    """A row a model and columns a part, or the other way round where there are many parts."""
    parts = [row.part for row in rows[0]]
    if any(row.agreement.fit.note for of in rows for row in of):
        notes = (*notes, "*: the fitted curve does not only rise, so the figure hides that higher scores are no better")
    counts = [row.agreement.count for row in rows[0]]
    # [figure][part][model]
    columns = {figure: [_column([r[place] for r in rows], figure) for place in range(len(parts))] for figure in _SHORT}
    if len(parts) <= _PARTS_ACROSS:
        return Table(
            title=title,
            header=("model", *(figure.title for _ in parts for figure in _SHORT)),
            rows=tuple(
                (
                    Cell(entry.title),
                    *(columns[figure][place][index] for place in range(len(parts)) for figure in _SHORT),
                )
                for index, entry in enumerate(chosen)
            ),
            spans=(("", 1), *((f"{part} ({count})", len(_SHORT)) for part, count in zip(parts, counts, strict=True))),
            notes=notes,
        )
    return Table(
        title=title,
        header=("part", "pictures", *(figure.title for _ in chosen for figure in _SHORT)),
        rows=tuple(
            (
                Cell(part),
                Cell(str(counts[place])),
                *(columns[figure][place][index] for index in range(len(chosen)) for figure in _SHORT),
            )
            for place, part in enumerate(parts)
        ),
        spans=(("", 2), *((entry.title, len(_SHORT)) for entry in chosen)),
        notes=notes,
    )


def _repeats(title: str, chosen: Sequence[Comparison], results: Sequence[PlanResult]) -> Table:
    plan = results[0].plan
    rows = []
    for entry, result in zip(chosen, results, strict=True):
        cells = [_spread(result.spread.get(figure.name), len(plan.repeats)) for figure in _FIGURES]
        rows.append((Cell(entry.title), *cells))
    return Table(
        title=f"{title}: median of {len(plan.repeats)} splits",
        header=("model", *(figure.title for figure in _FIGURES)),
        rows=tuple(rows),
        notes=(
            f"{plan.rule[0].upper()}{plan.rule[1:]}. In small print: standard deviation over the splits.",
            *plan.notes,
        ),
    )


def _spread(spread: Spread | None, due: int) -> Cell:
    if spread is None:
        return Cell(NOTHING)
    of = "" if spread.count == due else f", {spread.count} of {due}"
    return Cell(number(spread.median), f"± {spread.deviation:.4f}{of}")


def _groups(chosen: Sequence[Comparison], rating: str) -> list[Table]:
    names = dict.fromkeys(name for entry in chosen for name in entry.groups)
    return [
        _parts(f"Agreement with {rating} by {name}", chosen, [entry.groups[name] for entry in chosen], ())
        for name in names
    ]


def _ranking(chosen: Sequence[Comparison], rating: str) -> Table:
    found = [(entry, entry.ranking) for entry in chosen if entry.ranking is not None]
    return Table(
        title=f"Order of the pictures of one prompt, by {rating}",
        header=("model", "prompts", "pairs", "pair accuracy", "best picture found", "mean tau-b"),
        rows=tuple(
            (
                Cell(entry.title),
                Cell(str(ranking.groups)),
                Cell(str(ranking.pairs)),
                Cell(number(ranking.accuracy)),
                Cell(number(ranking.top)),
                Cell(number(ranking.tau_b)),
            )
            for entry, ranking in found
        ),
        notes=(
            "Chance is 0.5 for pair accuracy and 0 for tau-b. Pairs of equal rating are left out; equal scores are "
            "half right.",
        ),
    )


def _versus(evaluation: Evaluation) -> Table:
    rows, notes = [], []
    for entry in evaluation.versus:
        found = entry.difference
        detail = "" if found.low is None or found.high is None else f"{found.low:+.4f} to {found.high:+.4f}"
        gain = Cell(NOTHING if found.difference is None else f"{found.difference:+.4f}", detail)
        significant = entry.adjusted is not None and entry.adjusted < 0.05
        rows.append(
            (
                Cell(entry.first),
                Cell(entry.second),
                Cell(entry.rating),
                Cell(str(entry.count)),
                gain,
                Cell(_chance(found.p_value)),
                Cell(_chance(entry.adjusted)),
                Cell("yes" if significant else "no"),
            )
        )
        if found.reason:
            notes.append(f"{entry.first} against {entry.second}: {found.reason}")
    return Table(
        title="Are the differences in SRCC more than chance?",
        header=(
            "first",
            "second",
            "rating",
            "shared pictures",
            "SRCC first − second",
            "p",
            "p, Holm",
            "significant at 0.05",
        ),
        rows=tuple(rows),
        labels=3,
        notes=(
            "In small print: 95 % bootstrap interval. p is of the permutation test in which the two models' ranks may "
            "change places, content by content; Holm's adjustment is for the number of comparisons.",
            *notes,
        ),
    )


def _preferences(evaluation: Evaluation) -> list[Table]:
    header = ("model", "pairs", "accuracy", "ties wrong", "ties", "without score")
    rows = []
    for entry in evaluation.preferences:
        found = entry.accuracy
        detail = "" if found.low is None or found.high is None else f"{found.low:.4f} to {found.high:.4f}"
        rows.append(
            (
                Cell(entry.title),
                Cell(str(found.pairs)),
                Cell(number(found.accuracy), detail),
                Cell(number(found.strict)),
                Cell(str(found.ties)),
                Cell(str(entry.missing)),
            )
        )
    note = "A tie counts as half, in the next column as wrong. In small print: Wilson's 95 % interval. Chance is 0.5."
    found_tables = [Table("Agreement with preferences", header, tuple(rows), notes=(note,))]
    for name in dict.fromkeys(name for entry in evaluation.preferences for name in entry.groups):
        values = dict.fromkeys(value for entry in evaluation.preferences for value in entry.groups.get(name, {}))
        by_value = []
        for value in values:
            of = [entry.groups.get(name, {}).get(value) for entry in evaluation.preferences]
            by_value.append((Cell(value), *(Cell(number(one.accuracy if one else None)) for one in of)))
        titles = (entry.title for entry in evaluation.preferences)
        found_tables.append(Table(f"Agreement with preferences by {name}", (name, *titles), tuple(by_value)))
    return found_tables


def _column(rows: Sequence[Row], figure: _Figure) -> list[Cell]:
    """One figure of several models, the best marked if there is more than one and they saw equally many pictures.

    What a curve that falls hides is no merit: such a figure is marked, and never the best.
    """
    values = [getattr(row.agreement, figure.name) for row in rows]
    hiding = [figure.name in ("plcc_fitted", "rmse") and bool(row.agreement.fit.note) for row in rows]
    honest = [value for value, hides in zip(values, hiding, strict=True) if value is not None and not hides]
    comparable = len(honest) > 1 and len({row.agreement.count for row in rows}) == 1
    best = (max if figure.largest else min)(honest) if comparable else None
    return [
        Cell(
            number(value) + ("*" if hides else ""),
            _interval(row, figure.name),
            value is not None and value == best and not hides,
        )
        for row, value, hides in zip(rows, values, hiding, strict=True)
    ]


def _interval(row: Row, name: str) -> str:
    intervals: dict[str, Interval | None] = {"srcc": row.srcc_interval, "plcc_fitted": row.plcc_interval}
    interval = intervals.get(name)
    return "" if interval is None else f"{interval.low:.4f} to {interval.high:.4f}"


def _chance(p_value: float | None) -> str:
    if p_value is None:
        return NOTHING
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"
