"""``critiq-train``: trains the built-in model and heads on stored features, and says how good a bundle is."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from critiq_exporters.heads import commands as heads

app = typer.Typer(help="Trains and evaluates models.", no_args_is_help=True, pretty_exceptions_enable=False)

_DATA = Annotated[Path, typer.Option(help="Directory with the picture sets.", exists=True, file_okay=False)]


app.command("eliq")(heads.eliq)
app.command("ma-agiqa")(heads.ma_agiqa)


@app.command()
def builtin(
    out: Annotated[Path, typer.Option(help="Directory of the bundle to write; replaced where it exists.")],
    data: _DATA = Path("../shared/data"),
    work: Annotated[
        Path | None, typer.Option(help="Directory for intermediate files; default: OUT with .work.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 1,
    workers: Annotated[int, typer.Option(help="Processes that make samples.")] = 2,
    rounds: Annotated[int, typer.Option(help="How often each picture is spoilt anew; 10 GB of WORK each.")] = 2,
    passes: Annotated[float, typer.Option(help="How often the damage network sees each sample.")] = 0.7,
    pictures: Annotated[
        int | None, typer.Option(help="At most so many pictures of each training set; default: all.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the intermediate files of a stopped run.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Under a minute, on a few pictures: to see that it works.")
    ] = False,
    text_encoder: Annotated[Path | None, typer.Option(help="Folder of all-MiniLM-L6-v2, if not installed.")] = None,
    alignment_from: Annotated[
        Path | None,
        typer.Option(help="Bundle whose alignment side is taken over instead of training one.", exists=True),
    ] = None,
    visual_only: Annotated[bool, typer.Option("--visual-only", help="Leave the alignment side out.")] = False,
) -> None:
    """Train the built-in model from scratch and write its bundle."""
    from critiq_exporters.training.builtin import Plan, train_builtin

    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if visual_only and alignment_from:
        raise typer.BadParameter("--visual-only leaves out what --alignment-from asks for: give one of them")
    plan = Plan(
        rounds=rounds,
        workers=workers,
        per_population=pictures,
        with_alignment=not visual_only,
        text_encoder=text_encoder,
        alignment_from=alignment_from,
    )
    plan = replace(plan, damage=replace(plan.damage, passes=passes)).seeded(seed)
    options = {"--rounds": rounds, "--passes": passes, "--seed": seed, "--pictures": pictures}
    numbers = [part for name, value in options.items() if value is not None for part in (name, str(value))]
    flags = [name for name, on in (("--quick", quick), ("--visual-only", visual_only)) if on]
    # Not the path itself, which says nothing on another machine.
    taken = ["--alignment-from", "BUNDLE"] if alignment_from else []
    command = shlex.join(["critiq-train", "builtin", *numbers, *flags, *taken])
    manifest = train_builtin(
        data,
        work or out.with_name(out.name + ".work"),
        out,
        plan.quick() if quick else plan,
        quick=quick,
        resume=resume,
        command=command,
    )
    typer.echo(f"{out}: {manifest.name} {manifest.version}, {', '.join(item.name for item in manifest.dimensions)}")


@app.command()
def evaluate(
    bundle: Annotated[Path, typer.Argument(help="Directory of a bundle.", exists=True, file_okay=False)],
    data: _DATA = Path("../shared/data"),
    limit: Annotated[int | None, typer.Option(min=2, help="At most so many pictures of each set.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the degradations.")] = 7,
) -> None:
    """Print the figures of the model card for a bundle, through onnxruntime."""
    from critiq_exporters.training.evaluation import evaluate_bundle

    for line in evaluate_bundle(bundle, data, limit=limit, seed=seed):
        typer.echo(line)


@app.command()
def sheets(
    picture: Annotated[Path, typer.Argument(help="A picture that may be shown.", exists=True, dir_okay=False)],
    out: Annotated[Path, typer.Option(help="Directory for the JPEG files.")] = Path("docs/models"),
) -> None:
    """Draw the contact sheets of the degradations."""
    import numpy as np
    from PIL import Image

    from critiq_exporters.training.figures import contact_sheet

    out.mkdir(parents=True, exist_ok=True)
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("RGB").resize((576, 384)))
    for kind in ("technical", "aesthetic", "generative"):
        contact_sheet(pixels, kind, out / f"degradations_{kind}.jpg")
        typer.echo(str(out / f"degradations_{kind}.jpg"))
