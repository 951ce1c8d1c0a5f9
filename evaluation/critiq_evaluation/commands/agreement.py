"""``critiq agreement``: how far served models agree with each other on a folder of pictures."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import critiq
from critiq.cli.exits import UsageError
from critiq.cli.options import DEFAULT_URL, PromptsFile
from critiq.cli.pictures import Prompts, collect
from critiq.cli.running import complain, run
from critiq.errors import CritiqError, InvalidArgument, NotFound
from critiq_evaluation.agreement import AgreementOfModels, agreement
from critiq_evaluation.agreement_report import write_agreement
from critiq_evaluation.commands.asking import Bundles, Cache, Local, Server, Timeout, Window, server_of
from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.scoring import Asked, score_pictures

_NAME = "critiq agreement"

app = typer.Typer(name=_NAME, add_completion=False, rich_markup_mode=None)


@app.command(
    name="agreement",
    epilog="Exit status: 0 done; 1 done, but pictures have no score, or the server was not reached; 2 wrong usage or "
    "bad input.",
)
def compare(
    images: Annotated[Path, typer.Option(help="Directory of pictures.")],
    out: Annotated[Path, typer.Option(help="Directory for the tables, the heat map and the contact sheet.")],
    model: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:VERSION; default: all that are loaded. May be repeated.")
    ] = None,
    dimension: Annotated[
        list[str] | None, typer.Option(help="Only this dimension; default: all. May be repeated.")
    ] = None,
    prompts: PromptsFile = None,
    server: Server = DEFAULT_URL,
    local: Local = False,
    bundles: Bundles = None,
    resamples: Annotated[int, typer.Option(min=0, help="Of the bootstrap; 0: no intervals.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    cache: Cache = None,
    window: Window = 32,
    timeout: Timeout = 120.0,
) -> None:
    """Score a folder with several models; report SRCC of every two and the pictures on which they differ most."""
    asked = server_of(server, local, model, bundles)
    if not images.is_dir():
        raise EvaluationError(f"{images} is not a directory of pictures")
    pictures = _pictures(images, prompts)
    kept = cache or out / "scores.jsonl"
    with asked as url:
        names = list(dict.fromkeys(model or _loaded(url, timeout)))
        names = _comparable(url, timeout, names, dimension or [])
        try:
            scores = score_pictures(
                pictures,
                images,
                names,
                server=url,
                cache=kept,
                dimensions=dimension or [],
                window=window,
                timeout=timeout,
            )
        except CritiqError:
            complain(_NAME, f"the scores so far are in {kept}; the same command goes on from there")
            raise
    found = agreement(scores, dimension or [], resamples=resamples, seed=seed)
    written = write_agreement(found, images, out)
    complete = _summarise(found)
    typer.echo(f"report: {written[0]}")
    if not complete:
        raise typer.Exit(1)


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq agreement ARGUMENTS``; returns the exit status, as ``--help`` has it."""
    return run(
        app,
        _NAME,
        arguments,
        bad_input=(EvaluationError, UsageError, InvalidArgument, NotFound, OSError),
        failed=(CritiqError,),
    )


def _pictures(images: Path, prompts: Path | None) -> list[Asked]:
    known = Prompts(prompts) if prompts is not None else None
    return [
        Asked(picture.path.relative_to(images).as_posix(), known.find(picture) if known else "")
        for picture in collect([images])
    ]


def _loaded(url: str, timeout: float) -> list[str]:
    with critiq.Client(url, timeout=timeout) as client:
        return [f"{model.name}:{model.version}" for model in client.models() if model.state == "ready"]


def _comparable(url: str, timeout: float, models: Sequence[str], dimensions: Sequence[str]) -> list[str]:
    """The models that have one of ``dimensions``; asked first, so that what cannot be compared costs no time."""
    with critiq.Client(url, timeout=timeout) as client:
        found = [client.model(*name.partition(":")[::2]) for name in models]
    known = list(dict.fromkeys(dimension.name for model in found for dimension in model.dimensions))
    for name in dimensions:
        if name not in known:
            raise EvaluationError(f"--dimension {name!r}: no model has it; there is {', '.join(known)}")
    wanted = dimensions or known
    compared = {
        name: [d.name for d in model.dimensions if d.name in wanted] for name, model in zip(models, found, strict=True)
    }
    if sum(map(len, compared.values())) < 2:
        raise EvaluationError(
            f"one thing alone has no agreement: {', '.join(models) or 'no model is loaded'}; name two models with "
            "--model, or one with two dimensions"
        )
    for name in (name for name in models if not compared[name]):
        complain(_NAME, f"{name} has no {' and no '.join(dimensions)}; it is left out")
    return [name for name in models if compared[name]]


def _summarise(found: AgreementOfModels) -> bool:
    """Prints a line for each pair; returns whether every picture has every score that its prompt allows."""
    for pair in found.pairs:
        interval = f" ({pair.interval.low:.4f} to {pair.interval.high:.4f})" if pair.interval else ""
        srcc = "not defined: " + pair.reason if pair.srcc is None else f"{pair.srcc:.4f}{interval}"
        typer.echo(f"{pair.first.title} and {pair.second.title}: SRCC {srcc}; {pair.count} pictures")
    if found.left_out:
        typer.echo(f"left out, as they need prompts (--prompts): {', '.join(found.left_out)}")
    for series in found.series:
        if series.missing:
            asked, why = next(iter(series.missing.items()))
            complain(_NAME, f"{series.title}: {len(series.missing)} without a score, the first {asked.image}: {why}")
    return not any(series.missing for series in found.series)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
