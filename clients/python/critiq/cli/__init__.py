"""The command line: ``critiq --help`` lists the commands."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version as distribution_version
from typing import Annotated

import typer

from critiq._endpoint import API_KEY_VARIABLE, CA_FILE_VARIABLE, CERT_KEY_VARIABLE, CERT_VARIABLE
from critiq.cli import exits, handover, jobs, models, moderate, rank, score
from critiq.errors import CritiqError

app = typer.Typer(
    name="critiq",
    help="Scores AI-generated images: how good a picture looks and how well it matches its prompt.",
    epilog=exits.HELP,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(epilog=exits.HELP)(score.score)
app.command(epilog=exits.HELP)(rank.rank)
app.command(epilog=exits.HELP)(rank.compare)
app.command(epilog=exits.HELP)(moderate.moderate)
app.command(epilog=exits.HELP)(models.models)
app.add_typer(jobs.app, name="jobs", epilog=exits.HELP)
for _command in (
    handover.serve,
    handover.bulk,
    handover.export,
    handover.features,
    handover.policy,
    handover.keys,
    handover.evaluate,
    handover.ratings,
    handover.calibrate,
    handover.threshold,
    handover.agreement,
    handover.drift,
):
    # They parse what follows themselves, --help too.
    app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(
        _command
    )


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"critiq {distribution_version('critiq')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    api_key: Annotated[
        str,
        typer.Option(
            envvar=API_KEY_VARIABLE,
            show_default=False,
            help="Key for servers that ask for one. Others on this machine can see arguments: prefer the variable.",
        ),
    ] = "",
    ca_file: Annotated[
        str, typer.Option(envvar=CA_FILE_VARIABLE, show_default=False, help="PEM certificates to trust.")
    ] = "",
    client_cert: Annotated[
        str, typer.Option(envvar=CERT_VARIABLE, show_default=False, help="PEM file of our own certificate.")
    ] = "",
    client_key: Annotated[
        str, typer.Option(envvar=CERT_KEY_VARIABLE, show_default=False, help="PEM file of its key.")
    ] = "",
) -> None:
    given = {
        API_KEY_VARIABLE: api_key,
        CA_FILE_VARIABLE: ca_file,
        CERT_VARIABLE: client_cert,
        CERT_KEY_VARIABLE: client_key,
    }
    # Commands of other packages make clients of their own, which look there.
    os.environ.update({variable: value for variable, value in given.items() if value})


def main() -> None:
    """Runs the command in ``sys.argv`` and exits; an error is one line on stderr, never a traceback."""
    try:
        app()
    except exits.UsageError as error:
        exits.complain(str(error))
        sys.exit(exits.BAD_INPUT)
    except CritiqError as error:
        exits.complain(str(error))
        sys.exit(exits.code_of(error))
    except OSError as error:  # of an output file; those of pictures are CritiqErrors
        exits.complain(str(error))
        sys.exit(exits.BAD_INPUT)
    except KeyboardInterrupt:
        exits.complain("interrupted")
        sys.exit(exits.INTERRUPTED)
