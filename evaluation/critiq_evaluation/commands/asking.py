"""Options of commands that ask a server for scores: whom, and how."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from critiq_evaluation.errors import EvaluationError
from critiq_evaluation.local_server import local_server

Server = Annotated[
    str, typer.Option(envvar="CRITIQ_URL", help="host:port or grpc(s):// for gRPC, http(s):// for REST.")
]
Local = Annotated[bool, typer.Option("--local", help="Serve the models in a process of this command's own.")]
Bundles = Annotated[list[Path] | None, typer.Option(help="With --local: directory of bundles. May be repeated.")]
Cache = Annotated[Path | None, typer.Option(help="File of scores that is taken up again; default: OUT/scores.jsonl.")]
Window = Annotated[int, typer.Option(min=1, help="Pictures under way at once.")]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds to wait for the next answer.")]


def server_of(
    server: str, local: bool, models: Sequence[str] | None, bundles: Sequence[Path] | None
) -> AbstractContextManager[str]:
    """The URL to ask: the server's that runs, or inside the ``with`` block that of one of this command's own.

    Raises:
        EvaluationError: bundles are named for a server that runs.
    """
    if bundles and not local:
        raise EvaluationError("--bundles is for --local; a server that runs has its own")
    return local_server(models or [], bundles or []) if local else nullcontext(server)
