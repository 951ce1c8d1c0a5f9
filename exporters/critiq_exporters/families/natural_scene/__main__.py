"""Parameters from clean pictures: ``python -m critiq_exporters.families.natural_scene niqe FOLDER --out FILE``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from safetensors.numpy import save_file

from critiq_exporters.core.pictures import read_pictures
from critiq_exporters.families.natural_scene.fitting import fit_ilniqe, fit_niqe

app = typer.Typer(add_completion=False)


class Metric(StrEnum):
    """What to fit."""

    NIQE = "niqe"
    ILNIQE = "ilniqe"


@app.command()
def fit(
    metric: Annotated[Metric, typer.Argument(help="What to fit.")],
    pictures: Annotated[Path, typer.Argument(help="Folder of clean photographs: sharp, not compressed to be seen.")],
    out: Annotated[Path, typer.Option(help="File of parameters to write (.safetensors), for critiq export.")],
    count: Annotated[int, typer.Option(min=1, help="How many of the pictures, in the order of their names.")] = 1000,
    studio: Annotated[bool, typer.Option(help="NIQE on the Y of 16..235; export with --luma studio then.")] = False,
) -> None:
    """Fits the clean model of NIQE or IL-NIQE, for `critiq export niqe` or `critiq export ilniqe`."""
    if out.suffix != ".safetensors":
        raise typer.BadParameter(f"{out} must end in .safetensors", param_hint="--out")
    if out.exists():
        raise typer.BadParameter(f"{out} exists", param_hint="--out")
    try:
        found = read_pictures(pictures, count)
        if metric is Metric.NIQE:
            arrays = vars(fit_niqe(found, "studio" if studio else "full", typer.echo))
        else:
            arrays = vars(fit_ilniqe(found, say=typer.echo))
    except ValueError as error:
        typer.echo(f"critiq: {error}", err=True)
        raise typer.Exit(1) from error
    save_file(arrays, out)
    typer.echo(f"{out}: from {len(found)} pictures")


if __name__ == "__main__":
    app()
