"""``critiq serve``, ``export`` and ``features``: hand over to the packages that do it, which have their own options."""

from __future__ import annotations

import importlib

import typer

from critiq.cli import exits


def serve(context: typer.Context) -> None:
    """Serve models. Needs the extra `server`, or `gpu` for NVIDIA GPUs."""
    _hand_over(context, "critiq_server.cli", "the server", "server")


def export(context: typer.Context) -> None:
    """Turn a trained checkpoint into a bundle. Needs the extra `export`."""
    _hand_over(context, "critiq_exporters.cli", "the exporter", "export")


def features(context: typer.Context) -> None:
    """Compute features of large multimodal models ahead, and look after stores of them. Needs the extra `lmm`."""
    _hand_over(context, "critiq_exporters.features.cli", "the builder of features", "lmm")


def _hand_over(context: typer.Context, module: str, what: str, extra: str) -> None:
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        exits.complain(f"{what} is not installed ({error.name} is missing): pip install 'critiq[{extra}]'")
        raise typer.Exit(exits.BAD_INPUT) from None
    raise typer.Exit(command.main(context.args))
