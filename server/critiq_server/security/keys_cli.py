"""``critiq keys``: makes keys of callers, and lists them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from critiq_server.security.keys import SCOPES, KeysError, append, new_certificate, new_key, read_keys

DEFAULT_FILE = Path("keys.yaml")

File = Annotated[Path, typer.Option("--file", help="The file that the server's setting security.keys_file names.")]

_cli = typer.Typer(
    add_completion=False, rich_markup_mode=None, no_args_is_help=True, help="Keys of callers: make them, list them."
)


@_cli.command()
def new(
    name: Annotated[str, typer.Argument(help="Whose key it is; the audit log shows it.")],
    scopes: Annotated[str, typer.Option(help=f"What it opens, with commas between: {', '.join(SCOPES)}.")] = "score",
    requests_per_second: Annotated[float | None, typer.Option(help="Calls a second. Default: no limit.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Calls under way at once. Default: no limit.")] = None,
    requests_per_day: Annotated[int | None, typer.Option(help="Calls a day (UTC). Default: no limit.")] = None,
    certificate: Annotated[
        str, typer.Option(help="No key: let in client certificates with this name in them (URI, DNS or common name).")
    ] = "",
    file: File = DEFAULT_FILE,
) -> None:
    """Make a key and print it, this once: the file gets its hash only. Servers that use the file take it up at once."""
    wanted = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    limits = (requests_per_second, concurrency, requests_per_day)
    if certificate:
        append(file, new_certificate(name, certificate, wanted, *limits))
        typer.echo(f"critiq keys: a certificate of {certificate} may {', '.join(wanted)} as {name}.", err=True)
        return
    text, key = new_key(name, wanted, *limits)
    append(file, key)
    typer.echo(text)
    typer.echo(f"critiq keys: {key.name} may {', '.join(key.scopes)}; its hash is in {file}. Keep the key.", err=True)


@_cli.command("list")
def list_keys(file: File = DEFAULT_FILE) -> None:
    """The keys of a file: name, id, scopes, limits. To withdraw one, delete its entry."""
    for key in read_keys(file):
        limits = {
            "a second": key.requests_per_second,
            "at once": key.concurrency,
            "a day": key.requests_per_day,
        }
        shown = [f"{value:g} {unit}" for unit, value in limits.items() if value is not None]
        typer.echo("\t".join([key.name, key.handle, ",".join(key.scopes), ", ".join(shown) or "no limit"]))


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq keys ARGUMENTS``; returns the exit status."""
    try:
        return int(_cli(args=list(arguments), prog_name="critiq keys", standalone_mode=False) or 0)
    except typer.Exit as exit_:
        return exit_.exit_code
    except KeysError as error:
        sys.stderr.write(f"critiq keys: {error}\n")
        return 2
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error
            sys.stderr.write(f"critiq keys: {error.format_message()}\n")
            return 2
        raise
