"""``critiq models``: list, get, load, unload; aliases, route, promote, rollback, remove, shadow."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from critiq import Client
from critiq._base import LOAD_TIMEOUT
from critiq.cli import aliases, exits, options, tables

Action = Literal["list", "get", "load", "unload", "aliases", "route", "promote", "rollback", "remove", "shadow"]

_LISTS = ("list", "aliases")
_LONG = ("load", "unload", "route", "promote", "rollback")
"""They may load a model."""


def models(
    action: Annotated[
        Action,
        typer.Argument(
            help="list every model, or get (describe), load or unload one; list aliases, route an alias to model "
            "versions, promote its canary, roll it back, remove it, or show how its shadow agrees."
        ),
    ] = "list",
    name: Annotated[str, typer.Argument(help="Which model or alias; `get` alone describes the default model.")] = "",
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TARGET...",
            help="For `route`: MODEL:VERSION, or several MODEL:VERSION=PERCENT; one may leave it out.",
        ),
    ] = None,
    shadow: Annotated[
        str,
        typer.Option(help="For `route`: MODEL:VERSION=PERCENT that scores so much of what is answered once more."),
    ] = "",
    version: options.Version = "",
    json: options.Json = False,
    url: options.Url = options.DEFAULT_URL,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, help="Seconds; default: 30, and 300 where a model may be loaded.")
    ] = None,
    retries: options.Retries = options.DEFAULT_RETRIES,
) -> None:
    """What a server serves and what its scores mean; load and unload models, and point aliases at them."""
    _check(action, name, targets or [], shadow, version)
    limit = timeout or (LOAD_TIMEOUT if action in _LONG else options.DEFAULT_TIMEOUT)
    with options.client(url, limit, retries) as client:
        if action == "list":
            _list(client, json)
        elif action == "get":
            _get(client, name, version, json)
        elif action == "load":
            _load(client, name, version, limit, json)
        elif action == "unload":
            _unload(client, name, version, limit, json)
        elif action == "aliases":
            aliases.show_all(client, json)
        elif action == "route":
            aliases.route(client, name, targets or [], shadow, limit, json)
        elif action == "promote":
            aliases.promote(client, name, limit, json)
        elif action == "rollback":
            aliases.rollback(client, name, limit, json)
        elif action == "remove":
            aliases.remove(client, name, json)
        else:
            aliases.shadow(client, name, json)


def _check(action: Action, name: str, targets: list[str], shadow: str, version: str) -> None:
    if action in _LISTS and name:
        hint = f"; did you mean `critiq models get {name}`?" if action == "list" else ""
        raise exits.UsageError(f"`critiq models {action}` takes no name{hint}")
    if action not in (*_LISTS, "get") and not name:
        raise exits.UsageError(f"`critiq models {action}` needs a name")
    if action == "route" and not targets:
        raise exits.UsageError("`critiq models route` needs targets, for instance `mymodel:1 mymodel:2=10`")
    if action != "route" and (targets or shadow):
        given = targets[0] if targets else "--shadow"
        raise exits.UsageError(f"`critiq models {action}` takes nothing like {given!r}; targets are for `route`")
    if version and action not in ("get", "load", "unload"):
        raise exits.UsageError(f"`critiq models {action}` takes no --version; write MODEL:VERSION")


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
