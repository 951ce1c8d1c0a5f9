"""``critiq export``: checkpoints to bundles.

One command a family, since each has settings of its own; ``verify`` repeats an export's gates, ``families`` prints what
can be exported.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from critiq_exporters.core.bundle import sha256
from critiq_exporters.core.cards import table
from critiq_exporters.core.checkpoints import CheckpointError, find_checkpoint
from critiq_exporters.core.exportable import Exportable
from critiq_exporters.core.gates import VariantLimits
from critiq_exporters.core.graphs import ExportError
from critiq_exporters.core.pictures import Pixels, drawn_pictures, read_pictures
from critiq_exporters.core.precisions import Precision
from critiq_exporters.families import CARDS, LOADERS
from critiq_exporters.families.maniqa.family import Evaluation
from critiq_server.bundles.model import BrokenBundle

app = typer.Typer(
    name="critiq export",
    help="Turn trained checkpoints into bundles that the server serves.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Checkpoint = Annotated[Path, typer.Option(help="The checkpoint: a .safetensors or torch file, or the folder of one.")]
Out = Annotated[
    Path, typer.Option(help="Where bundles go: OUT/NAME/VERSION. Serve it with `critiq serve --models OUT`.")
]
Name = Annotated[str | None, typer.Option(help="Name of the model; the family's where left out.")]
Version = Annotated[str, typer.Option(help="Version of the model.")]
Precisions = Annotated[str, typer.Option("--precision", help="fp32,fp16,int8: any of them, with commas.")]
Pictures = Annotated[Path | None, typer.Option(help="Folder of pictures for the gates; drawn ones where left out.")]
Count = Annotated[int, typer.Option(min=4, help="How many pictures the gates use.")]
MaxBatch = Annotated[int | None, typer.Option(min=1, max=4096, help="Largest batch, instead of the family's.")]
MaxShift = Annotated[
    float, typer.Option(help="Reduced precisions: largest move of a score, as a share of their spread.")
]
MinSrcc = Annotated[float, typer.Option(help="Reduced precisions: smallest Spearman correlation with fp32.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of torch and onnxruntime.")]


@app.command()
def maniqa(
    checkpoint: Checkpoint,
    out: Out,
    scale: Annotated[float, typer.Option(help="0.8: KonIQ-10k and KADID-10k checkpoints; 0.13: PIPAL's.")] = 0.8,
    evaluation: Annotated[
        str,
        typer.Option(help="whole: the picture squeezed to 224 x 224; five_crops: the mean over corners and middle."),
    ] = "whole",
    name: Name = None,
    version: Version = "1",
    precision: Precisions = "fp32",
    pictures: Pictures = None,
    count: Count = 32,
    max_batch: MaxBatch = None,
    max_shift: MaxShift = 0.05,
    min_srcc: MinSrcc = 0.995,
    threads: Threads = 1,
) -> None:
    """MANIQA: visual quality of pictures (Yang et al., CVPRW 2022)."""
    if evaluation not in get_args(Evaluation):
        raise typer.BadParameter(
            f"{evaluation!r} is none of {', '.join(get_args(Evaluation))}", param_hint="--evaluation"
        )
    options = {"scale": scale, "evaluation": evaluation}
    limits = VariantLimits(max_shift, min_srcc)
    _export("maniqa", options, checkpoint, out, name, version, precision, pictures, count, max_batch, limits, threads)


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Directory of the bundle: the one with manifest.json.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Hold the scores against torch again, from this checkpoint.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The fp32 bundle, to hold a reduced precision against.")
    ] = None,
    pictures: Pictures = None,
    count: Count = 8,
    max_shift: MaxShift = 0.05,
    min_srcc: MinSrcc = 0.995,
    threads: Threads = 1,
) -> None:
    """Repeat the gates of an export: digests, golden records, batch sizes, and its sources where they are given."""
    from critiq_exporters.core.verify import family_of
    from critiq_exporters.core.verify import verify as repeat

    _set_threads(threads)
    build = None
    if checkpoint is not None:
        family, options = family_of(bundle)
        build = _builder(family, checkpoint, options)
    gates = repeat(
        bundle,
        _pictures(pictures, count),
        build=build,
        reference=reference,
        limits=VariantLimits(max_shift, min_srcc),
        threads=threads,
    )
    typer.echo("digests and golden records: passed")
    for gate in gates:
        typer.echo(gate.line())
    if not all(gate.passed for gate in gates):
        raise typer.Exit(1)


@app.command()
def families() -> None:
    """Print the table of what can be exported, as Markdown."""
    typer.echo(table(CARDS))


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq export ARGUMENTS``; returns the exit status: 0 done, 1 a gate failed, 2 bad input."""
    known = [*LOADERS, "verify", "families"]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        _complain(f"no family is called {arguments[0]!r}; known are {', '.join(LOADERS)}")
        return 2
    try:
        return int(app(args=list(arguments), prog_name="critiq export", standalone_mode=False) or 0)
    except typer.Exit as exit_:
        return exit_.exit_code
    except (ExportError, BrokenBundle) as error:
        _complain(str(error))
        return 1
    except (CheckpointError, ValueError, OSError) as error:
        _complain(str(error))
        return 2
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error
            _complain(error.format_message())
            return 2
        raise


def _export(
    family: str,
    options: dict[str, Any],
    checkpoint: Path,
    out: Path,
    name: str | None,
    version: str,
    precision: str,
    pictures: Path | None,
    count: int,
    max_batch: int | None,
    limits: VariantLimits,
    threads: int,
) -> None:
    from critiq_exporters.core.export import Settings, export

    started = time.monotonic()

    def say(line: str) -> None:
        typer.echo(f"[{time.monotonic() - started:6.1f} s] {line}")

    precisions = _precisions(precision)
    given = _pictures(pictures, count) if pictures is not None else []
    _set_threads(threads)
    file = find_checkpoint(checkpoint)
    say(f"reading {file.name}")
    settings = Settings(
        out=out,
        name=name or family,
        version=version,
        checkpoint_sha256=sha256(file),
        command=_command(family, options, file, precision),
        precisions=precisions,
        pictures=given,
        picture_count=count,
        max_batch=max_batch,
        limits=limits,
        threads=threads,
    )
    exported = export(LOADERS[family](file, **options), settings, say)
    refused = [entry for entry in precisions if entry not in exported.places]
    if refused:
        typer.echo(exported.report.markdown(), err=True)
        raise ExportError(f"{', '.join(refused)} failed a gate and was not written")


def _builder(family: str, checkpoint: Path, options: dict[str, Any]) -> Any:
    if family not in LOADERS:
        raise ValueError(f"the bundle is of the family {family!r}, which this exporter does not know")

    def build() -> Exportable:
        return LOADERS[family](checkpoint, **options)

    return build


def _precisions(text: str) -> list[Precision]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in wanted if part not in get_args(Precision)]
    if unknown or not wanted:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is none of {', '.join(get_args(Precision))}", param_hint="--precision"
        )
    return wanted  # type: ignore[return-value]


def _pictures(folder: Path | None, count: int) -> list[Pixels]:
    return read_pictures(folder, count) if folder is not None else drawn_pictures(count)


def _set_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _command(family: str, options: dict[str, Any], checkpoint: Path, precision: str) -> str:
    # By name only: where files lay on this machine is nobody's business.
    flags = " ".join(f"--{key} {value}" for key, value in options.items())
    return f"critiq export {family} --checkpoint {checkpoint.name} --precision {precision} {flags}"


def _complain(message: str) -> None:
    sys.stderr.write(f"critiq export: {message}\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
