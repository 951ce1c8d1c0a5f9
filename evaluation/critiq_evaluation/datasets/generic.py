"""A label file of one's own: columns are found by usual names, or as the caller says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from critiq_evaluation.datasets.layouts import GROUPS, Layout, number, to_dataset, with_columns
from critiq_evaluation.datasets.published import IMAGE
from critiq_evaluation.datasets.tables import Table, read_table
from critiq_evaluation.datasets.types import Dataset
from critiq_evaluation.errors import EvaluationError

RATINGS = {
    "quality": "quality|mos_quality|quality_mos",
    "alignment": "alignment|mos_align|mos_alignment|alignment_mos",
    "authenticity": "authenticity|authenticity_mos",
    "correspondence": "correspondence|correspondence_mos",
    "mos": "mos|score|rating|gt_score",
}


def generic(labels: Path, columns: Mapping[str, str] | None) -> Dataset:
    """Any table with a picture and ratings in a row. Further columns become groups, results are broken down by them.

    A file without a header is read if all that ``columns`` names are numbers: the columns' places from 1.
    """
    places = [column for what, column in (columns or {}).items() if what.split(".")[0] != "scale"]
    table = read_table(labels, header=not places or not all(column.isdigit() for column in places))
    layout = with_columns(_guess(table), columns, table)
    if not layout.ratings:
        raise EvaluationError(
            f"{labels} has no column that is known as a rating; it has {table.listing()}: say which it is, for "
            "instance --column quality=COLUMN"
        )
    return to_dataset(_title(table, layout), table, _with_further_groups(table, layout))


def _guess(table: Table) -> Layout:
    ratings = {what: column for what, names in RATINGS.items() if (column := table.column(names))}
    spread = {what: f"{what}_std|std_{what}" for what in ratings}
    if len(ratings) == 1:
        spread = {what: f"{names}|std|sd" for what, names in spread.items()}
    groups = {what: what for what in GROUPS}
    return Layout(IMAGE, ratings, prompt="prompt|caption|text", spread=spread, groups=groups, split="split|set")


def _with_further_groups(table: Table, layout: Layout) -> Layout:
    spoken_of = [layout.image, layout.prompt, layout.split, *layout.ratings.values(), *layout.spread.values()]
    used = {table.column(names) for names in [*spoken_of, *layout.groups.values()]}
    further = {
        name: name for name in table.columns if name not in used and name != "count" and not _measured(table, name)
    }
    return Layout(**{**vars(layout), "groups": {**further, **layout.groups}})


def _measured(table: Table, column: str) -> bool:
    """Whether a column holds fractions: no groups are called 3.1416."""
    return any((value := number(row.cells[column])) is not None and not value.is_integer() for row in table.rows)


def _title(table: Table, layout: Layout) -> str:
    taken = {"image": layout.image, **layout.ratings, "prompt": layout.prompt}
    found = {what: table.column(names) for what, names in taken.items()}
    return f"generic ({', '.join(f'{what}: {column}' for what, column in found.items() if column)})"
