"""``critiq export``: checkpoints to bundles.

One command a family, since each has settings of its own; ``verify`` repeats an export's gates, ``tensorrt`` adds
engines to a bundle, ``families`` prints what can be exported.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from critiq.cli.running import BAD_INPUT, complain, run
from critiq_exporters.core.cards import table
from critiq_exporters.core.checkpoints import CheckpointError
from critiq_exporters.core.exportable import Exportable
from critiq_exporters.core.gates import VariantLimits
from critiq_exporters.core.graphs import ExportError
from critiq_exporters.core.hub import local_checkpoint
from critiq_exporters.families import FAMILIES
from critiq_exporters.family_commands import (
    MaxShift,
    MinSrcc,
    Pictures,
    Threads,
    command_of,
    gate_pictures,
    set_threads,
)
from critiq_server.bundles.model import BrokenBundle
from critiq_server.runtime.onnx import ProviderUnavailable

_NAME = "critiq export"

app = typer.Typer(
    name=_NAME,
    help="Turn trained checkpoints into bundles that the server serves.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

for _family in FAMILIES.values():
    app.command(_family.card.family)(command_of(_family))


@app.command()
def verify(
    bundle: Annotated[Path, typer.Argument(help="Directory of the bundle: the one with manifest.json.")],
    checkpoint: Annotated[
        str | None, typer.Option(help="Hold the scores against torch again, from this checkpoint.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(help="With --checkpoint: NAME=PATH, a file or folder that the export was given beside it."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="The fp32 bundle, to hold a reduced precision against.")
    ] = None,
    pictures: Pictures = None,
    count: Annotated[int, typer.Option(min=4, help="How many pictures the gates use.")] = 8,
    max_shift: MaxShift = 0.05,
    min_srcc: MinSrcc = 0.995,
    threads: Threads = 1,
) -> None:
    """Repeat the gates of an export: digests, golden records, batch sizes, and its sources where they are given."""
    from critiq_exporters.core.verify import family_of
    from critiq_exporters.core.verify import verify as repeat

    set_threads(threads)
    build = None
    if checkpoint is not None:
        family, options = family_of(bundle)
        paths = dict(entry.split("=", 1) for entry in option or [] if "=" in entry)
        build = _builder(family, checkpoint, {**options, **{name: Path(path) for name, path in paths.items()}})
    gates = repeat(
        bundle,
        gate_pictures(pictures, count),
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
def tensorrt(
    bundle: Annotated[Path, typer.Argument(help="Directory of the bundle: the one with manifest.json.")],
    out: Annotated[Path, typer.Option(help="Where the bundle with engines goes: OUT/NAME/VERSION.")],
    version: Annotated[str | None, typer.Option(help="Its version; the bundle's with -smNN where left out.")] = None,
    device: Annotated[int, typer.Option(min=0, help="Number of the GPU.")] = 0,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File of measured kernel times: the next build is faster and chooses the same.")
    ] = None,
    workspace_gb: Annotated[float, typer.Option(min=0, help="GPU memory for building, in GiB; 0: no limit.")] = 0,
    tf32: Annotated[bool, typer.Option(help="Compute float32 products with 10 bits of fraction: faster.")] = False,
    pictures: Pictures = None,
    count: Annotated[int, typer.Option(min=4, help="How many pictures the gates use.")] = 8,
) -> None:
    """Add TensorRT engines for the GPU of this machine to a bundle, held against its graphs."""
    from critiq_exporters.core.tensorrt_export import export_engines

    export_engines(
        bundle,
        out,
        gate_pictures(pictures, count),
        version=version,
        device=device,
        timing_cache=timing_cache,
        workspace=int(workspace_gb * 2**30),
        tf32=tf32,
        say=typer.echo,
    )


@app.command()
def families(short: Annotated[bool, typer.Option("--short", help="The README's columns only.")] = False) -> None:
    """Print the table of what can be exported, as Markdown."""
    typer.echo(table((family.card for family in FAMILIES.values()), short))


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq export ARGUMENTS``; returns the exit status: 0 done, 1 a gate failed, 2 bad input."""
    known = [*FAMILIES, "verify", "tensorrt", "families"]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        complain(_NAME, f"no family is called {arguments[0]!r}; known are {', '.join(FAMILIES)}")
        return BAD_INPUT
    return run(
        app,
        _NAME,
        arguments,
        bad_input=(CheckpointError, ValueError, OSError),
        failed=(ExportError, BrokenBundle, ProviderUnavailable),
    )


def _builder(family: str, checkpoint: str, options: dict[str, Any]) -> Callable[[], Exportable]:
    if family not in FAMILIES:
        raise ValueError(f"the bundle is of the family {family!r}, which this exporter does not know")

    def build() -> Exportable:
        return FAMILIES[family].load(local_checkpoint(checkpoint), **options)

    return build


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
