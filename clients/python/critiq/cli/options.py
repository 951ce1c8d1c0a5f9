"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import critiq
from critiq import _endpoint

Url = Annotated[
    str,
    typer.Option(
        envvar="CRITIQ_URL", help="Server: host:port or grpc(s):// for gRPC, http(s):// for REST.", show_default=True
    ),
]
Timeout = Annotated[float, typer.Option(min=0.001, help="Seconds for a call with all its retries.")]
Retries = Annotated[
    int, typer.Option(min=0, help="Tries after the first, where the server refused or was not reached.")
]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout instead of a table.")]
ModelName = Annotated[str, typer.Option("--model", help="Model; default: the server's default.")]
Version = Annotated[str, typer.Option("--model-version", "--version", help="Its version; default: the newest loaded.")]
Prompt = Annotated[str, typer.Option(help="The text that the pictures were made from.")]
PromptsFile = Annotated[
    Path | None,
    typer.Option("--prompts", help="Prompts by picture: .csv or .jsonl (file, prompt), or .txt (file, tab, prompt)."),
]
PromptSidecars = Annotated[
    bool, typer.Option("--prompt-sidecars", help="Read the prompt of photo.jpg from photo.txt or photo.jpg.txt.")
]
Dimensions = Annotated[
    list[str] | None, typer.Option("--dimension", help="Only this dimension; may be given several times.")
]
Pictures = Annotated[
    list[Path],
    typer.Argument(metavar="PATH", help="Pictures, directories (gone through recursively), or - (stdin)."),
]

DEFAULT_URL = _endpoint.DEFAULT_URL
DEFAULT_TIMEOUT = 30.0
DEFAULT_RETRIES = 3


def client(url: str, timeout: float, retries: int) -> critiq.Client:
    return critiq.Client(url, timeout=timeout, retries=retries)
