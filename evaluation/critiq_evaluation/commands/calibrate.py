"""``critiq calibrate``: raw scores to ratings, on a few labels; a new bundle version."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from critiq.cli.running import run
from critiq.errors import CritiqError, InvalidArgument, NotFound
from critiq_evaluation.calibration.calibrating import Result, as_json, calibrate
from critiq_evaluation.calibration.curves import METHODS, Method
from critiq_evaluation.calibration.validation import Errors
from critiq_evaluation.commands import calibrate_head
from critiq_evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from critiq_evaluation.scoring import Asked
    from critiq_server.bundles.manifest import Manifest, Reference

_NAME = "critiq calibrate"
_HELP = "Exit status: 0 done; 1 the server that was started for it failed; 2 wrong usage, bad input or a failed fit."

app = typer.Typer(name=_NAME, add_completion=False, rich_markup_mode=None)


@app.command(epilog=_HELP)
def calibrate_command(
    bundle: Annotated[Path, typer.Argument(help="Directory of the bundle: the one with manifest.json.")],
    dimension: Annotated[str, typer.Option(help="Which of its dimensions.")],
    out: Annotated[Path, typer.Option(help="Where the new version goes: OUT/NAME/VERSION.")],
    version: Annotated[str, typer.Option(help="The new version.")],
    labels: Annotated[
        Path | None, typer.Option(help="Label file: a published dataset's, or a table of pictures and ratings.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="Directory of the pictures in --labels.")] = None,
    scores: Annotated[Path | None, typer.Option(help="Table of raw values and ratings, instead of pictures.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            help="WHAT=COLUMN: of --labels image, prompt, a rating; of --scores score, rating. May be repeated."
        ),
    ] = None,
    rating: Annotated[str, typer.Option(help="Which rating of --labels, where it has several.")] = "",
    scale: Annotated[
        str, typer.Option(help="MIN:MAX of the ratings (MAX:MIN: lower is better); default: the published dataset's.")
    ] = "",
    method: Annotated[str, typer.Option(help="linear, logistic4, logistic5, isotonic or auto.")] = "auto",
    to: Annotated[str, typer.Option(help="Unit of the report: mos (that of the ratings) or 0..1.")] = "mos",
    reference: Annotated[
        Path | None, typer.Option(help="Directory of pictures whose raw values become the reference of percentiles.")
    ] = None,
    population: Annotated[
        str, typer.Option(help="What those pictures are, in words; default: the folder's name.")
    ] = "",
    report: Annotated[
        Path | None, typer.Option(help="Directory for calibration.json and plots; default: OUT/NAME-VERSION-report.")
    ] = None,
    folds: Annotated[int, typer.Option(min=2, help="Of the cross-validation.")] = 5,
    repeats: Annotated[int, typer.Option(min=1, help="Of the cross-validation.")] = 10,
    seed: Annotated[int, typer.Option(help="Of all draws.")] = 0,
) -> None:
    """Fit a dimension's raw scores to human ratings and write a bundle version that gives calibrated ratings.

    `critiq calibrate head --help`: a new dimension from frozen features instead.
    """
    from critiq_evaluation.calibration import bundles, figures, scored
    from critiq_evaluation.calibration.labels import column_options

    chosen, unit = _method(method), _unit(to)
    manifest = bundles.open_bundle(bundle)
    subject = bundles.dimension_of(manifest, dimension)
    place = bundles.place_of(out, manifest, version)
    folder = report or out / f"{manifest.name}-{version}-report"
    columns = column_options(column or [])
    # All that can be wrong is looked at before any picture is scored.
    if reference is not None and subject.needs_prompt:
        raise EvaluationError(f"--reference: {dimension} needs a prompt, and a folder of pictures has none")
    known = scored.pictures_in(reference) if reference is not None else []
    if (scores is None) == (labels is None):
        raise EvaluationError("give either --scores FILE, or --labels FILE and --images DIR")
    if scores is not None:
        found = scored.from_scores(scores, columns, scale)
    elif labels is not None and images is not None:
        rated = scored.rated_pictures(labels, columns, rating, scale)
        found = scored.from_pictures(rated, images, bundle, manifest, dimension, folder / "scores.jsonl")
    else:
        raise EvaluationError("--labels needs --images DIR, the directory of its pictures")
    for line in found.left_out:
        typer.echo(f"left out: {line}", err=True)
    result = calibrate(
        found.raw, found.ratings, subject, found.bounds, method=chosen, to=unit, folds=folds, repeats=repeats, seed=seed
    )
    after, outside = result.dimension, None
    if reference is not None:
        made, outside = _reference(known, reference, population, bundle, manifest, result)
        after = after.model_copy(update={"reference": made})
    command = shlex.join(["critiq", "calibrate", bundle.name, *_told(dimension, found.bounds, result.method, version)])
    notes = f"calibration of {dimension} on {result.scores.size} labels: held-out RMSE {result.after.rmse:.4g} ({unit})"
    bundles.write_version(bundle, bundles.with_dimension(manifest, after), place, command=command, notes=notes)
    folder.mkdir(parents=True, exist_ok=True)
    details = {**as_json(result), "unit": unit, "left_out": list(found.left_out), "reference_outside": outside}
    (folder / "calibration.json").write_text(json.dumps(details, indent=2, allow_nan=False) + "\n", "utf-8")
    figures.draw(result, folder)
    typer.echo(summary(result))
    if outside is not None:
        typer.echo(f"reference: {100 * outside:.1f} % of its pictures lie outside the labelled raw values")
    typer.echo(f"bundle: {place}\nreport: {folder}")


def summary(result: Result) -> str:
    """What a person reads."""
    low, high = result.bounds
    lines = [
        f"{result.dimension.name}: {result.scores.size} labels of {low:g} to {high:g}; errors are of held-out pictures",
        f"{'':22}{'RMSE':>16}{'MAE':>16}{'PLCC':>8}",
    ]
    if result.before is None:
        lines.append("before                (the bundle has no calibration: raw values are on no scale of ratings)")
    else:
        lines.append(_line("before", result.before))
    for name, errors in result.methods.items():
        if errors is None:
            lines.append(f"{name:22}fit: failed: {result.failures.get(name, 'in every fold')}")
        else:
            lines.append(_line(f"{name}{' (chosen)' if name == result.method else ''}", errors))
    lines.append(
        f"SRCC {result.srcc_before:.4f} before, {result.srcc_after:.4f} after; {result.tied} pictures tied by the map"
    )
    lines.append(f"labels: {result.learning.note}")
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq calibrate ARGUMENTS``; returns the exit status, as ``--help`` has it."""
    head = list(arguments[:1]) == ["head"]
    return run(
        calibrate_head.app if head else app,
        f"{_NAME} head" if head else _NAME,
        arguments[1:] if head else arguments,
        bad_input=(EvaluationError, InvalidArgument, NotFound, OSError),
        failed=(CritiqError,),
    )


def _reference(
    pictures: list[Asked], directory: Path, population: str, bundle: Path, manifest: Manifest, result: Result
) -> tuple[Reference, float]:
    """The new reference, and the share of its pictures whose raw values no label covers."""
    from critiq_evaluation.calibration import bundles, scored

    values, failures = scored.raw_values(pictures, directory, bundle, manifest, result.dimension.name)
    for asked, why in failures.items():
        typer.echo(f"left out of the reference: {asked.image}: {why}", err=True)
    if not values:
        raise EvaluationError(f"--reference {directory}: none of its pictures has a score")
    raw = np.array(list(values.values()))
    good = raw if result.dimension.direction == "higher_is_better" else -raw
    outside = float(np.mean((good < result.scores.min()) | (good > result.scores.max())))
    return bundles.reference_of(raw, population or directory.resolve().name), outside


def _told(dimension: str, bounds: tuple[float, float], method: str, version: str) -> list[str]:
    return [
        f"--dimension={dimension}",
        f"--scale={bounds[0]:g}:{bounds[1]:g}",
        f"--method={method}",
        f"--version={version}",
    ]


def _line(name: str, errors: Errors) -> str:
    plcc = "-" if errors.plcc is None else f"{errors.plcc:.4f}"
    spreads = (errors.rmse_spread, errors.mae_spread)
    cells = [
        f"{value:.4f} ± {spread:.4f}" if any(spreads) else f"{value:.4f}         "
        for value, spread in zip((errors.rmse, errors.mae), spreads, strict=True)
    ]
    return f"{name:22}{cells[0]:>16}{cells[1]:>16}{plcc:>8}"


def _method(name: str) -> Method | None:
    if name == "auto":
        return None
    for known in METHODS:
        if name == known:
            return known
    raise EvaluationError(f"--method {name!r}: known are {', '.join(METHODS)} and auto")


def _unit(to: str) -> Literal["mos", "0..1"]:
    if to == "mos":
        return "mos"
    if to == "0..1":
        return "0..1"
    raise EvaluationError(f"--to {to!r}: known are mos and 0..1")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
