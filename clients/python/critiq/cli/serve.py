"""``critiq serve``: hands over to the server, which has its own options."""

from __future__ import annotations

import importlib

import typer

from critiq.cli import exits


def serve(context: typer.Context) -> None:
    """Serve models. Needs the extra `server`, or `gpu` for NVIDIA GPUs."""
    try:
        server = importlib.import_module("critiq_server.cli")
    except ModuleNotFoundError as error:
        exits.complain(f"the server is not installed ({error.name} is missing): pip install 'critiq[server]'")
        raise typer.Exit(exits.BAD_INPUT) from None
    raise typer.Exit(server.main(context.args))
