"""Commands of the server, the exporters and the evaluation: each package parses its own options."""

from __future__ import annotations

import importlib

import typer

from critiq.cli import exits


def serve(context: typer.Context) -> None:
    """Serve models. Needs the extra `server`, or `gpu` for NVIDIA GPUs."""
    _hand_over(context, "critiq_server.cli", "the server", "server")


def bulk(context: typer.Context) -> None:
    """Score a great many pictures into Parquet, resumably, without a server. Needs `server` and `parquet`, or `ray`."""
    _hand_over(context, "critiq_server.bulk.cli", "bulk scoring", "server,parquet")


def export(context: typer.Context) -> None:
    """Turn a trained checkpoint into a bundle. Needs the extra `export`."""
    _hand_over(context, "critiq_exporters.cli", "the exporter", "export")


def features(context: typer.Context) -> None:
    """Compute features of large multimodal models ahead, and look after stores of them. Needs the extra `lmm`."""
    _hand_over(context, "critiq_exporters.features.cli", "the builder of features", "lmm")


def keys(context: typer.Context) -> None:
    """Make and list the API keys of a server's callers. Needs the extra `server`."""
    _hand_over(context, "critiq_server.security.keys_cli", "the server", "server")


def policy(context: typer.Context) -> None:
    """Check moderation policies and try them on recorded scores. Needs the extra `server`."""
    _hand_over(context, "critiq_server.policy_cli", "the server", "server")


def evaluate(context: typer.Context) -> None:
    """Judge models against human ratings. Needs the extra `evaluate`."""
    _evaluation(context, "evaluate")


def ratings(context: typer.Context) -> None:
    """Turn raw ratings of single persons into mean opinion scores. Needs the extra `evaluate`."""
    _evaluation(context, "ratings")


def calibrate(context: typer.Context) -> None:
    """Fit a model's scores to ratings; writes a new bundle version. Needs the extra `evaluate`."""
    _evaluation(context, "calibrate")


def threshold(context: typer.Context) -> None:
    """Choose thresholds from accept/reject labels; writes a policy. Needs the extra `evaluate`."""
    _evaluation(context, "threshold")


def agreement(context: typer.Context) -> None:
    """How far models agree with each other on a folder of pictures. Needs the extra `evaluate`."""
    _evaluation(context, "agreement")


def drift(context: typer.Context) -> None:
    """Compare the scores that a server gave with its models' references. Needs the extra `evaluate`."""
    _evaluation(context, "drift")


def _evaluation(context: typer.Context, name: str) -> None:
    _hand_over(context, f"critiq_evaluation.commands.{name}", "the evaluation", "evaluate")


def _hand_over(context: typer.Context, module: str, what: str, extra: str) -> None:
    try:
        command = importlib.import_module(module)
    except ModuleNotFoundError as error:
        exits.complain(f"{what} is not installed ({error.name} is missing): pip install 'critiq[{extra}]'")
        raise typer.Exit(exits.BAD_INPUT) from None
    raise typer.Exit(command.main(context.args))
