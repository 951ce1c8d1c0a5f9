"""``critiq drift``: whether what is scored, and how it scores, is still what it was."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from critiq.cli.running import FAILED, run
from critiq.errors import CritiqError
from critiq_evaluation.errors import EvaluationError

if TYPE_CHECKING:
    from critiq_evaluation.drift import Server

_NAME = "critiq drift"
_HELP = "Exit status: 0 no alarm; 1 an alarm; 2 wrong usage, or a server that was not reached or refused."

app = typer.Typer(
    name=_NAME,
    help="Whether what is scored, and how it scores, is still what it was (docs/drift.md).",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Servers = Annotated[
    list[str] | None, typer.Option("--server", help="http(s)://host:port of REST. May be repeated: they are merged.")
]
Headers = Annotated[
    list[str] | None, typer.Option("--header", help="NAME=VALUE to send along, for a proxy. May be repeated.")
]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds for each server.")]
_DEFAULT = "http://127.0.0.1:8000"


@app.command(epilog=_HELP)
def report(
    server: Servers = None,
    model: Annotated[str, typer.Option(help="Only this model.")] = "",
    label: Annotated[str | None, typer.Option(help="Only this label; empty: requests without one.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory for drift.json, drift.md and plots.")] = None,
    json_: Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")] = False,
    fail_on_warning: Annotated[bool, typer.Option("--fail-on-warning", help="A warning is exit status 1 too.")] = False,
    header: Headers = None,
    timeout: Timeout = 30.0,
) -> None:
    """Say what drifts, by the servers' windows; for cron: the exit status tells."""
    from critiq_evaluation import drift

    filters = {name: value for name, value in (("model", model or None), ("label", label)) if value is not None}
    answers = {each.url: each.get(**filters) for each in _servers(server, header, timeout)}
    found = drift.merged(answers)
    for line in drift.silent(answers):
        typer.echo(line, err=True)
    typer.echo(found.model_dump_json(indent=2) if json_ else drift.table(found), nl=json_)
    if out is not None:
        for path in drift.write(found, out):
            typer.echo(f"wrote {path}", err=True)
    if found.state == "alarm" or (fail_on_warning and found.state == "warning"):
        raise typer.Exit(FAILED)


@app.command(epilog="Exit status: 0 done; 2 wrong usage, or a server that was not reached or refused.")
def baseline(
    model: Annotated[str, typer.Option(help="The model.")],
    server: Servers = None,
    version: Annotated[str, typer.Option("--model-version", "--version", help="Default: every version.")] = "",
    label: Annotated[str | None, typer.Option(help="Default: every label; empty: requests without one.")] = None,
    name: Annotated[str, typer.Option(help="A dimension or another quantity; default: all.")] = "",
    hours: Annotated[float | None, typer.Option(help="Take what came in the last so many hours.")] = None,
    requests: Annotated[int | None, typer.Option(help="Learn it anew from the next so many requests.")] = None,
    header: Headers = None,
    timeout: Timeout = 30.0,
) -> None:
    """Set what later traffic is compared with. The server must allow it: drift.allow_changes."""
    if (hours is None) == (requests is None):
        raise EvaluationError("give either --hours or --requests")
    body = {"model": model, "version": version, "label": label, "name": name, "hours": hours, "requests": requests}
    for each in _servers(server, header, timeout):
        found = each.set_baseline(**body)
        for entry in found.series:
            count = entry.baseline.count if entry.baseline is not None else 0
            done = f"{count} values" if entry.state != "learning" else "learning"
            typer.echo(f"{each.url}: {entry.model} {entry.version} {entry.label or '-'} {entry.name}: {done}")


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq drift ARGUMENTS``; returns the exit status: 0 no alarm, 1 an alarm, 2 bad input."""
    return run(app, _NAME, arguments, bad_input=(EvaluationError, CritiqError, OSError))


def _servers(urls: list[str] | None, headers: list[str] | None, timeout: float) -> list[Server]:
    from critiq_evaluation import drift

    named = {}
    for entry in headers or []:
        name, equals, value = entry.partition("=")
        if not equals or not name:
            raise EvaluationError(f"--header {entry!r} is not of the form NAME=VALUE")
        named[name] = value
    return [drift.Server(url, named, timeout) for url in urls or [_DEFAULT]]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
