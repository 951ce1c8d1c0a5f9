"""``critiq bulk``: options to a run, its progress, and how it ended."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from critiq.cli import exits, running
from critiq.cli.score import progress
from critiq_server.bulk.errors import BulkError
from critiq_server.bulk.inputs import Columns
from critiq_server.bulk.run import Options, Outcome, run
from critiq_server.bulk.units import Plan
from critiq_server.flags import settings_from
from critiq_server.telemetry.logs import configure

NAME = "critiq bulk"

_cli = typer.Typer(add_completion=False, rich_markup_mode=None)


@_cli.command(
    name="bulk", epilog="Exit codes: 0 all done · 1 some rows failed · 2 bad input, or storage failed · 130 stopped"
)
def _bulk(
    input_: Annotated[
        str,
        typer.Option(
            "--input",
            help="Folder of pictures; Parquet or tar (webdataset) file, folder or pattern; also s3://, gs://.",
        ),
    ],
    output: Annotated[str, typer.Option(help="Folder for Parquet parts, or FILE.parquet.")],
    engine: Annotated[Literal["local", "ray"], typer.Option(help="Where workers run.")] = "local",
    workers: Annotated[int, typer.Option(min=1, help="Processes (local) or actors (ray) with an engine each.")] = 1,
    model: Annotated[str, typer.Option(help="Model; default: the settings' default.")] = "",
    version: Annotated[str, typer.Option(help="Its version; default: the newest.")] = "",
    dimensions: Annotated[
        str, typer.Option(help="Only these, with commas between. Default: all that can be judged.")
    ] = "",
    prompts: Annotated[
        str, typer.Option(help="Prompts by picture, .csv or .jsonl. Default: metadata.* in the folder, or a file each.")
    ] = "",
    image_column: Annotated[str, typer.Option(help="Column, or member of tar samples, with the picture.")] = "",
    prompt_column: Annotated[str, typer.Option(help="Column or member with the prompt.")] = "",
    id_column: Annotated[str, typer.Option(help="Column with the row's id.")] = "",
    checkpoint: Annotated[int, typer.Option(min=1, help="Rows of one part: what a worker may lose when killed.")] = 512,
    batch: Annotated[int, typer.Option(min=1, max=4096, help="Pictures that a part has under way at once.")] = 64,
    restart: Annotated[bool, typer.Option("--restart", help="Delete what an earlier run left; start anew.")] = False,
    ray_address: Annotated[str, typer.Option(help="Ray cluster; default: start one on this machine.")] = "",
    cpus: Annotated[float, typer.Option(min=0, help="CPUs of each Ray actor.")] = 1.0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each Ray actor; may be a fraction.")] = 0.0,
    config: Annotated[Path | None, typer.Option(help="YAML file with the server's settings.")] = None,
    models: Annotated[list[Path] | None, typer.Option(help="Directory that holds bundles. May be repeated.")] = None,
    provider: Annotated[str | None, typer.Option(help="auto, engine, tensorrt, cuda or cpu.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting of the server: limits.prompt_bytes=4096.")
    ] = None,
) -> None:
    """Score a great many pictures into Parquet; the same command again goes on where it was stopped."""
    named: dict[str, Any] = {"models.directories": models or None, "runtime.provider": provider}
    settings = settings_from(NAME, config, named, ["log.level=warning", *(set_ or [])])
    configure(settings.log)
    asked = Options(
        input=input_,
        output=output,
        engine=engine,
        model=model,
        version=version,
        dimensions=tuple(name.strip() for name in dimensions.split(",") if name.strip()),
        columns=Columns(image_column, prompt_column, id_column),
        prompts=prompts,
        checkpoint=checkpoint,
        batch=batch,
        workers=workers,
        restart=restart,
        ray_address=ray_address,
        cpus=cpus,
        gpus=gpus,
    )
    with progress() as bars:
        bar = bars.add_task("scoring", total=None, failed=0, start=False)
        failures = 0

        def on_plan(plan: Plan, units: int, rows: int) -> None:
            if units:
                _say(f"{rows:,} rows in {units:,} of {len(plan.units):,} parts are done already")
            bars.update(bar, total=plan.rows, completed=rows)
            bars.start_task(bar)

        def report(rows: int, failed: int) -> None:
            nonlocal failures
            failures += failed
            bars.update(bar, advance=rows, failed=failures)

        outcome = run(asked, settings, on_plan, report)
    raise typer.Exit(_told(outcome, output))


def _told(outcome: Outcome, output: str) -> int:
    if not outcome.finished:
        again = shlex.join([NAME.split(maxsplit=1)[0], *sys.argv[1:]])
        _say(f"stopped; {outcome.rows:,} rows are done, {outcome.units_left:,} parts are left; to go on: {again}")
        return exits.INTERRUPTED
    failed = sum(outcome.failed.values())
    codes = ", ".join(f"{code} {count:,}" for code, count in outcome.failed.items())
    when = ", done before" if outcome.before else f" in {outcome.seconds:,.1f} s"
    why = f" ({codes})" if codes else ""
    _say(f"{outcome.rows - failed:,} rows scored, {failed:,} failed{why}{when}; {output}")
    return exits.SOME_FAILED if failed else 0


def _say(message: str) -> None:
    running.complain(NAME, message)


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq bulk ARGUMENTS``; returns the exit status."""
    return running.run(_cli, NAME, arguments, (BulkError,))
