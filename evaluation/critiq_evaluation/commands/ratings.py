"""``critiq ratings``: raw ratings of single persons to mean opinion scores."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from critiq.cli.running import complain, run
from critiq_evaluation.datasets.layouts import parse_scale
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.ratings.processing import LEAST_SRCC, METHODS, Options, Processed
from critiq_evaluation.ratings.raw import RawRatings, read_ratings

_NAME = "critiq ratings"
_SHOWN = 10

app = typer.Typer(
    name=_NAME,
    help="Turn raw ratings of single persons into mean opinion scores (docs/datasets.md).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback()
def _ratings() -> None:
    """Without this, typer would take the only command for the whole program."""


@app.command(epilog="Exit status: 0 done; 1 done, but pictures have no score; 2 wrong usage or bad input.")
def process(
    raw: Annotated[Path, typer.Argument(help="CSV, XLSX or JSON: a row for each rating, or a column for each rater.")],
    method: Annotated[str, typer.Option(help="aigiqa20k, mint or bt500.")],
    out: Annotated[Path, typer.Option(help="CSV of the scores; `critiq evaluate` reads it.")],
    raters: Annotated[Path | None, typer.Option(help="CSV of what became of each rater.")] = None,
    column: Annotated[
        list[str] | None, typer.Option("--column", help="WHAT=COLUMN; image, rater, score, session. May be repeated.")
    ] = None,
    scale: Annotated[str, typer.Option(help="MIN:MAX; ratings outside are left out and reported.")] = "",
    session_size: Annotated[
        int, typer.Option(min=0, help="Pictures of a session, in the file's order; 0: the column, or one session.")
    ] = 0,
    screening: Annotated[bool, typer.Option(help="Reject raters as the method says.")] = True,
    least_srcc: Annotated[
        float, typer.Option(min=-1, max=1, help="aigiqa20k: raters below are rejected.")
    ] = LEAST_SRCC,
    log_offset: Annotated[float, typer.Option(min=0, help="aigiqa20k: what is added before the logarithm.")] = 1.0,
) -> None:
    """Reject outliers, compute mean opinion scores with 95 % intervals, say what became of each rater."""
    if method not in METHODS:
        raise EvaluationError(f"--method {method!r}: known are {', '.join(METHODS)}")
    read = read_ratings(raw, _columns(column or []), parse_scale("--scale", scale) if scale else None)
    if session_size:
        sessions = tuple(str(index // session_size) for index in range(len(read.pictures)))
        read = RawRatings(read.raters, read.pictures, read.scores, sessions, read.problems)
    found = METHODS[method](read, Options(screening, least_srcc, log_offset))
    _write(
        out,
        ("image", "mos", "std_z" if method == "aigiqa20k" else "std", "ci_low", "ci_high", "count"),
        ((o.picture, o.mos, o.std, o.low, o.high, o.count) for o in found.opinions if o.mos is not None),
    )
    if raters is not None:
        columns = ("rater", "ratings", "outlying", "srcc", "rejected")
        _write(raters, columns, ((r.name, r.ratings, r.outlying, r.srcc, r.rejected) for r in found.raters))
    if not _summarise(read, found, out):
        raise typer.Exit(1)


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq ratings ARGUMENTS``; returns the exit status: 0 done, 1 pictures without a score, 2 bad input."""
    return run(app, _NAME, arguments, bad_input=(EvaluationError, OSError))


def _columns(entries: Sequence[str]) -> dict[str, str]:
    found = {}
    for entry in entries:
        what, equals, name = entry.partition("=")
        if not (equals and name) or what not in ("image", "rater", "score", "session"):
            raise EvaluationError(f"--column {entry!r}: expected image, rater, score or session, = and a column")
        found[what] = name
    return found


def _write(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(["" if cell is None else cell for cell in row] for row in rows)


def _summarise(read: RawRatings, found: Processed, out: Path) -> bool:
    """Says what was done on stdout and what is wrong on stderr; returns whether every picture has a score."""
    rejected = [rater for rater in found.raters if rater.rejected]
    missing = [opinion for opinion in found.opinions if opinion.mos is None]
    for problem in read.problems[:_SHOWN]:
        complain(_NAME, f"{problem.row}: {problem.message}")
    for opinion in missing[:_SHOWN]:
        complain(_NAME, f"{opinion.picture} has no score: {opinion.reason}")
    for what, count in (("problems", len(read.problems)), ("pictures without a score", len(missing))):
        if count > _SHOWN:
            complain(_NAME, f"{count - _SHOWN} more {what}")
    for rater in rejected:
        typer.echo(f"rejected {rater.name}: {rater.rejected}")
    scored = len(found.opinions) - len(missing)
    typer.echo(
        f"{out}: {scored} of {len(found.opinions)} pictures, {len(found.raters) - len(rejected)} of "
        f"{len(found.raters)} raters, method {found.method}"
    )
    return not missing


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
