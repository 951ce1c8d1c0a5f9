"""``critiq evaluate``: served models against human ratings, as the papers do it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated

import typer

import critiq
from critiq.cli.options import DEFAULT_URL
from critiq.cli.running import complain, run
from critiq.errors import CritiqError, InvalidArgument, NotFound
from critiq.types import Model
from critiq_evaluation import protocols
from critiq_evaluation.commands.asking import Bundles, Cache, Local, Server, Timeout, Window, server_of
from critiq_evaluation.datasets.reading import READERS, check_pictures, read
from critiq_evaluation.datasets.types import Dataset
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.judging import Evaluation, judge
from critiq_evaluation.pairing import pair_up
from critiq_evaluation.report.data import About
from critiq_evaluation.report.tables import number
from critiq_evaluation.report.writing import write_report
from critiq_evaluation.scoring import score_dataset
from critiq_evaluation.statistics import FITS, FitName

_NAME = "critiq evaluate"
_HELP = (
    "Exit status: 0 done; 1 done, but some pictures have no score or a fit failed, or the server was not reached; "
    "2 wrong usage or bad input."
)

app = typer.Typer(name=_NAME, add_completion=False, rich_markup_mode=None)
_lists = typer.Typer(name=f"{_NAME} list", add_completion=False, rich_markup_mode=None)


@app.command(epilog=_HELP)
def evaluate(
    dataset: Annotated[
        str, typer.Option(help="A dataset's name (`critiq evaluate list`), or the label file itself: it is recognised.")
    ],
    images: Annotated[Path, typer.Option(help="Directory of its pictures.")],
    out: Annotated[Path, typer.Option(help="Directory for the report; made if need be.")],
    labels: Annotated[Path | None, typer.Option(help="Label file or directory, where --dataset is a name.")] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column", help="WHAT=COLUMN (image, prompt, a rating, ...) of a table of your own. May be repeated."
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:VERSION; default: the server's default model. May be repeated."),
    ] = None,
    server: Server = DEFAULT_URL,
    local: Local = False,
    bundles: Bundles = None,
    map_: Annotated[
        list[str] | None,
        typer.Option("--map", help="DIMENSION=RATING to compare; default: by name. May be repeated."),
    ] = None,
    protocol: Annotated[
        list[str] | None, typer.Option(help="See `critiq evaluate list`; default: all. May be repeated.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Splits of the protocols random and content.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the first split, and of the bootstrap.")] = 0,
    fit: Annotated[
        str, typer.Option(help="logistic4, logistic4-sjtu, logistic5, logistic5-pyiqa or none.")
    ] = "logistic4",
    resamples: Annotated[
        int, typer.Option(min=0, help="Of bootstrap and permutation test; 0: neither intervals nor tests.")
    ] = 1000,
    note: Annotated[str, typer.Option(help="Said at the top of the report.")] = "",
    cache: Cache = None,
    window: Window = 32,
    timeout: Timeout = 120.0,
) -> None:
    """Score a human-rated dataset with served models and report how far they agree with people."""
    name = _fit(fit)
    kept = cache or out / "scores.jsonl"
    asked = server_of(server, local, model, bundles)
    rated = _read(dataset, labels, column or [])
    # Only a directory without any of them is refused: a single one that is missing stays in its split, and is reported.
    check_pictures(rated, images)
    options = protocols.Options(repeats=repeats, seed=seed, images=images)
    # Before any picture is scored, so that a protocol that cannot be applied costs no time.
    wanted = list(dict.fromkeys(protocol or ["all"]))
    plans = [protocols.plan(one, rated, options) for one in wanted] if rated.pictures or protocol else []
    out.mkdir(parents=True, exist_ok=True)
    with asked as url:
        models = _models(url, timeout, model or [""])
        # A wrong --map, too, costs no time.
        pairs = [pair for found in models for pair in pair_up(found, rated, map_ or [])]
        try:
            scores = score_dataset(
                rated,
                images,
                [f"{found.name}:{found.version}" for found in models],
                server=url,
                cache=kept,
                dimensions=list(dict.fromkeys(pair.dimension for pair in pairs)),
                window=window,
                timeout=timeout,
            )
        except CritiqError:
            if kept.exists():
                complain(_NAME, f"the scores so far are in {kept}; the same command goes on from there")
            raise
    evaluation = judge(rated, scores, plans, mapping=map_ or [], fit=name, resamples=resamples, seed=seed)
    settings = {
        "dataset": f"{dataset}, read as {rated.name}",
        "models": ", ".join(entry.name for entry in scores),
        "server": "a process of the command's own" if local else server,
        "protocols": ", ".join(wanted),
        "fit": fit,
        "seed": str(seed),
        "resamples": str(resamples),
    }
    about = About(datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), distribution_version("critiq"), settings, note)
    written = write_report(evaluation, about, images, out)
    complete = _summarise(evaluation)
    typer.echo(f"report: {written[0]}")
    if not complete:
        raise typer.Exit(1)


@_lists.command()
def list_() -> None:
    """Print the datasets, protocols and fits that there are, as Markdown."""
    for what, rows in (
        ("dataset", [(name, reader.summary) for name, reader in READERS.items()]),
        ("protocol", [(name, protocol.summary) for name, protocol in protocols.PROTOCOLS.items()]),
        ("fit", [(name, "the default" if name == FITS[0] else "") for name in FITS]),
    ):
        typer.echo(f"| {what} | |\n| --- | --- |")
        for name, summary in rows:
            typer.echo(f"| {name} | {summary} |")
        typer.echo("")


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq evaluate ARGUMENTS``; returns the exit status, as ``--help`` has it."""
    listing = list(arguments[:1]) == ["list"]
    return run(
        _lists if listing else app,
        _NAME,
        arguments[1:] if listing else arguments,
        bad_input=(EvaluationError, InvalidArgument, NotFound, OSError),
        failed=(CritiqError,),
    )


def _fit(name: str) -> FitName:
    for known in FITS:
        if name == known:
            return known
    raise EvaluationError(f"--fit {name!r}: known are {', '.join(FITS)}")


def _read(dataset: str, labels: Path | None, columns: Sequence[str]) -> Dataset:
    pairs = {}
    for entry in columns:
        what, equals, column = entry.partition("=")
        if not (what and equals and column):
            raise EvaluationError(f"--column {entry!r} is not of the form WHAT=COLUMN")
        pairs[what] = column
    return read(dataset, labels, pairs or None)


def _models(url: str, timeout: float, names: Sequence[str]) -> list[Model]:
    """The model versions that are meant, each once, whatever names it was given."""
    with critiq.Client(url, timeout=timeout) as client:
        found = [client.model(name, version) for name, _, version in (entry.partition(":") for entry in names)]
    return list({(entry.name, entry.version): entry for entry in found}.values())


def _summarise(evaluation: Evaluation) -> bool:
    """Prints a line for each comparison; returns whether every picture has a score and every fit a curve."""
    complete = True
    for entry in evaluation.comparisons:
        found = entry.whole.agreement
        complete = complete and not entry.whole.missing and found.fit.state == "ok"
        interval = entry.whole.srcc_interval
        limits = f" ({interval.low:.4f} to {interval.high:.4f})" if interval else ""
        fitted = f"PLCC {number(found.plcc_fitted)}" + ("" if found.fit.name == "none" else f" after {found.fit.name}")
        if found.fit.state == "failed":
            fitted = f"fit: failed: {found.fit.reason}"
        missing = f", {entry.whole.missing} without a score" if entry.whole.missing else ""
        typer.echo(
            f"{entry.title} against {entry.pair.rating}: SRCC {number(found.srcc)}{limits}, {fitted}; "
            f"{found.count} pictures{missing}"
        )
    for judged in evaluation.preferences:
        complete = complete and not judged.missing
        accuracy = judged.accuracy
        typer.echo(
            f"{judged.title} against preferences: accuracy {number(accuracy.accuracy)}; {accuracy.pairs} pairs"
            + (f", {judged.missing} without scores" if judged.missing else "")
        )
    if evaluation.dataset.problems:
        typer.echo(f"{len(evaluation.dataset.problems)} problem(s) of the dataset: see the report")
    return complete


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
