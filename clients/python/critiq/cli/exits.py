"""What a command ends in: its exit code, and one line on stderr."""

from __future__ import annotations

import sys

from critiq import errors

SOME_FAILED = 1
BAD_INPUT = 2
UNREACHABLE = 3
LATE = 4
REJECTED = 5
INTERRUPTED = 130

HELP = (
    "Exit codes: 0 all done · 1 some pictures failed, or a fault of the server · 2 usage or bad input · "
    "3 server unreachable, not ready or too busy · 4 too late · 5 a picture was rejected (moderate) · 130 interrupted"
)


def code_of(error: errors.CritiqError) -> int:
    if isinstance(error, errors.DeadlineExceeded):
        return LATE
    if isinstance(error, errors.Unavailable | errors.TooBusy):
        return UNREACHABLE
    if isinstance(
        error,
        errors.InvalidArgument
        | errors.NotFound
        | errors.FailedPrecondition
        | errors.PermissionDenied
        | errors.Unauthenticated,
    ):
        return BAD_INPUT
    return SOME_FAILED


def complain(message: str) -> None:
    print(f"critiq: {' '.join(message.split())}", file=sys.stderr)


class UsageError(Exception):
    """The arguments, or a file that they name, cannot be used."""
