"""Runs a command line as a function: what went wrong is one line on stderr and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

FAILED, BAD_INPUT = 1, 2
Errors = tuple[type[Exception], ...]


def run(app: typer.Typer, name: str, arguments: Sequence[str], bad_input: Errors, failed: Errors = ()) -> int:
    """Runs ``NAME ARGUMENTS``; returns the exit status: 0 done, 1 for errors of ``failed``, 2 for ``bad_input``.

    Wrong usage is bad input. Every other error is a fault of the program, and goes on.
    """
    try:
        return int(app(args=list(arguments), prog_name=name, standalone_mode=False) or 0)
    except typer.Exit as exit_:
        return exit_.exit_code
    except bad_input as error:
        complain(name, str(error))
        return BAD_INPUT
    except failed as error:
        complain(name, str(error))
        return FAILED
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error
            complain(name, error.format_message())
            return BAD_INPUT
        raise


def complain(name: str, message: str) -> None:
    """One line on stderr."""
    sys.stderr.write(f"{name}: {message}\n")
