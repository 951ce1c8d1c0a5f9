"""``critiq models``: list, get, load, unload."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from critiq import Client
from critiq._base import LOAD_TIMEOUT
from critiq.cli import exits, options, tables

Action = Literal["list", "get", "load", "unload"]


def models(
    action: Annotated[Action, typer.Argument(help="list every model, or get (describe), load or unload one.")] = "list",
    name: Annotated[str, typer.Argument(help="Which; `get` alone describes the default model.")] = "",
    version: options.Version = "",
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds; default: 30, and 300 to load or unload.")
    ] = None,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """What a server serves and what its scores mean; load and unload models."""
    if action == "list" and name:
        raise exits.UsageError(f"`critiq models list` takes no name; did you mean `critiq models get {name}`?")
    if action in ("load", "unload") and not name:
        raise exits.UsageError(f"`critiq models {action}` needs a name")
    limit = timeout or (LOAD_TIMEOUT if action in ("load", "unload") else options.DEFAULT_TIMEOUT)
    with options.client(url, limit, retries) as client:
        if action == "list":
            _list(client, json)
        elif action == "get":
            _get(client, name, version, json)
        elif action == "load":
            _load(client, name, version, limit, json)
        else:
            _unload(client, name, version, limit, json)


def _list(client: Client, json: bool) -> None:
    found = client.models()
    if not json:
        tables.print_table(tables.models_table(found))
        return
    for model in found:
        tables.print_json(model)


def _get(client: Client, name: str, version: str, json: bool) -> None:
    model = client.model(name, version)
    if json:
        tables.print_json(model)
    else:
        tables.print_table(tables.model_table(model), tables.model_notes(model))


def _load(client: Client, name: str, version: str, timeout: float, json: bool) -> None:
    model = client.load_model(name, version, timeout=timeout)
    if json:
        tables.print_json(model)
    else:
        tables.print_table(tables.models_table([model]))


def _unload(client: Client, name: str, version: str, timeout: float, json: bool) -> None:
    client.unload_model(name, version, timeout=timeout)
    if json:
        tables.print_json({"unloaded": name, "version": version})
    else:
        typer.echo(f"unloaded {name} {version}".rstrip())
