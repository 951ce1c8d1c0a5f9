"""``critiq rank`` and ``critiq compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from critiq.cli import exits, options, tables
from critiq.cli.pictures import collect


def rank(
    paths: options.Pictures,
    prompt: options.Prompt = "",
    top_k: Annotated[int, typer.Option("--top", "--top-k", min=0, help="Only the best so many; 0: all.")] = 0,
    at_least: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DIMENSION:]SCALE=NUMBER",
            help="Rank only pictures that reach this, for instance visual_quality:percentile=20; may be given several "
            "times. Scales: raw, calibrated, percentile.",
        ),
    ] = None,
    diversity: Annotated[
        float, typer.Option(min=0, max=1, help="0: by score alone; towards 1: unlike pictures ahead of like ones.")
    ] = 0.0,
    embedding: Annotated[
        str, typer.Option(help="Stage whose output says how alike two are; default: the image encoder.")
    ] = "",
    model: options.ModelName = "",
    version: options.Version = "",
    dimension: Annotated[str, typer.Option(help="What to order by; default: the model's own choice.")] = "",
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: options.Timeout = options.DEFAULT_TIMEOUT,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """Order pictures that were made from one prompt, best first."""
    pictures = collect(paths)
    names = [picture.name for picture in pictures]
    with options.client(url, timeout, retries) as client:
        result = client.rank(
            [picture.source() for picture in pictures],
            prompt,
            top_k=top_k,
            at_least=at_least or (),
            diversity=diversity,
            embedding=embedding,
            model=model,
            version=version,
            dimension=dimension,
        )
    if json:
        for entry in result.ranking:
            similar_to = None if entry.similar_to is None else names[entry.similar_to]
            tables.print_json(
                {
                    "rank": entry.rank,
                    "file": names[entry.index],
                    "score": entry.score,
                    "others": entry.others,
                    "reason": entry.reason,
                    "similar_to": similar_to,
                    "similarity": entry.similarity,
                    "error": entry.error,
                }
            )
    else:
        tables.print_table(tables.rank_table(result, names))
    if any(entry.error is not None for entry in result.ranking):
        raise typer.Exit(exits.SOME_FAILED)


def compare(
    first: Annotated[Path, typer.Argument(help="A picture.")],
    second: Annotated[Path, typer.Argument(help="Another.")],
    prompt: options.Prompt = "",
    model: options.ModelName = "",
    version: options.Version = "",
    dimension: options.Dimensions = None,
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: options.Timeout = options.DEFAULT_TIMEOUT,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """Say in each dimension which of two pictures is better."""
    with options.client(url, timeout, retries) as client:
        result = client.compare(first, second, prompt, model=model, version=version, dimensions=dimension or ())
    if json:
        tables.print_json(result)
    else:
        tables.print_table(tables.compare_table(result, str(first), str(second)))
