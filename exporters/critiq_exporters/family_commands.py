"""One command a family: the options that all have, and those that its ``load`` function takes."""

from __future__ import annotations

import inspect
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typing_extensions import Doc

from critiq_exporters.core.checkpoints import fingerprint
from critiq_exporters.core.exportable import Family
from critiq_exporters.core.gates import VariantLimits
from critiq_exporters.core.graphs import ExportError
from critiq_exporters.core.hub import local_checkpoint
from critiq_exporters.core.pictures import Pixels, drawn_pictures, read_pictures
from critiq_exporters.core.precisions import Precision

Pictures = Annotated[Path | None, typer.Option(help="Folder of pictures for the gates; drawn ones where left out.")]
MaxShift = Annotated[
    float, typer.Option(help="Reduced precisions: largest move of a score, as a share of their spread.")
]
MinSrcc = Annotated[float, typer.Option(help="Reduced precisions: smallest Spearman correlation with fp32.")]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads of torch and onnxruntime.")]


def command_of(family: Family) -> Callable[..., None]:
    """The function behind ``critiq export FAMILY``: its signature is the common options and the family's own."""
    own = _own_options(family)

    def run(**given: Any) -> None:
        _export(family, {name: given.pop(name) for name in own}, **given)

    common = inspect.signature(_common, eval_str=True).parameters
    clash = own.keys() & common.keys()
    if clash:
        raise AssertionError(f"{family.card.family} has an option that all have: {sorted(clash)}")
    parameters = [
        common["checkpoint"],
        common["out"],
        *own.values(),
        *(parameter for name, parameter in common.items() if name not in ("checkpoint", "out")),
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = _first_paragraph(family.load)
    return run


def _common(
    *,
    checkpoint: Annotated[
        str,
        typer.Option(help="A checkpoint file, the folder of one, or OWNER/NAME[@REVISION] on the Hugging Face hub."),
    ],
    out: Annotated[
        Path, typer.Option(help="Where bundles go: OUT/NAME/VERSION. Serve it with `critiq serve --models OUT`.")
    ],
    name: Annotated[str | None, typer.Option(help="Name of the model; the family's where left out.")] = None,
    version: Annotated[str, typer.Option(help="Version of the model.")] = "1",
    precision: Annotated[str, typer.Option(help="fp32,fp16,int8: any of them, with commas.")] = "fp32",
    pictures: Pictures = None,
    count: Annotated[int, typer.Option(min=4, help="How many pictures the gates use.")] = 32,
    max_batch: Annotated[
        int | None, typer.Option(min=1, max=4096, help="Largest batch, instead of the family's.")
    ] = None,
    max_shift: MaxShift = 0.05,
    min_srcc: MinSrcc = 0.995,
    threads: Threads = 1,
) -> None:
    """Stands for the options of every family's command."""


def _own_options(family: Family) -> dict[str, inspect.Parameter]:
    """The parameters of ``load`` after the first, as options."""
    hints = get_type_hints(family.load, include_extras=True)
    options = {}
    for parameter in list(inspect.signature(family.load).parameters.values())[1:]:
        hint = hints[parameter.name]
        meaning = ""
        if get_origin(hint) is Annotated:
            kind, *notes = get_args(hint)
            meaning = next((note.documentation for note in notes if isinstance(note, Doc)), "")
            hint = kind
        options[parameter.name] = inspect.Parameter(
            parameter.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=parameter.default,
            annotation=Annotated[hint, typer.Option(help=meaning)],
        )
    return options


def _export(
    family: Family,
    options: dict[str, Any],
    *,
    checkpoint: str,
    out: Path,
    name: str | None,
    version: str,
    precision: str,
    pictures: Path | None,
    count: int,
    max_batch: int | None,
    max_shift: float,
    min_srcc: float,
    threads: int,
) -> None:
    from critiq_exporters.core.export import Settings, export

    started = time.monotonic()

    def say(line: str) -> None:
        typer.echo(f"[{time.monotonic() - started:6.1f} s] {line}")

    precisions = _precisions(precision)
    given = gate_pictures(pictures, count) if pictures is not None else []
    set_threads(threads)
    place = local_checkpoint(checkpoint, say)
    say(f"reading {place.name}")
    settings = Settings(
        out=out,
        name=name or family.card.family,
        version=version,
        checkpoint_sha256=fingerprint(place),
        command=_command(family.card.family, options, checkpoint, precision),
        precisions=precisions,
        pictures=given,
        picture_count=count,
        max_batch=max_batch,
        limits=VariantLimits(max_shift, min_srcc),
        threads=threads,
    )
    exported = export(family.load(place, **options), settings, say)
    refused = [entry for entry in precisions if entry not in exported.places]
    if refused:
        typer.echo(exported.report.markdown(), err=True)
        raise ExportError(f"{', '.join(refused)} failed a gate and was not written")


def gate_pictures(folder: Path | None, count: int) -> list[Pixels]:
    """``count`` pictures for the gates: from ``folder``, or drawn."""
    return read_pictures(folder, count) if folder is not None else drawn_pictures(count)


def set_threads(threads: int) -> None:
    """How many threads torch computes with."""
    import torch

    torch.set_num_threads(threads)


def _precisions(text: str) -> list[Precision]:
    wanted = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [part for part in wanted if part not in get_args(Precision)]
    if unknown or not wanted:
        raise typer.BadParameter(
            f"{', '.join(unknown) or 'nothing'} is none of {', '.join(get_args(Precision))}", param_hint="--precision"
        )
    return wanted  # type: ignore[return-value]


def _command(family: str, options: dict[str, Any], checkpoint: str, precision: str) -> str:
    # By name only: where files lay on this machine is nobody's business.
    words = ["critiq", "export", family, "--checkpoint", _told(checkpoint), "--precision", precision]
    for key, value in options.items():
        if value not in (None, False):
            flag = "--" + key.replace("_", "-")
            words += [flag] if value is True else [flag, _told(value)]
    return shlex.join(words)


def _told(value: object) -> str:
    if isinstance(value, Path) or (isinstance(value, str) and Path(value).exists()):
        return Path(value).name
    return str(value)


def _first_paragraph(function: Callable[..., object]) -> str:
    return (inspect.getdoc(function) or "").split("\n\n")[0]
