"""``critiq serve``: flags to settings to a running server."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import structlog
import typer

from critiq_server.flags import settings_from
from critiq_server.settings import Settings, print_settings

if TYPE_CHECKING:
    from critiq_server.processes.group import Member

Text = Annotated[str | None, typer.Option()]

_cli = typer.Typer(add_completion=False, rich_markup_mode=None)


@_cli.command(name="serve")
def _serve(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file with settings.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    rest_port: Annotated[int | None, typer.Option(help="REST port; 0: any free one.")] = None,
    grpc_port: Annotated[int | None, typer.Option(help="gRPC port; 0: any free one.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port of the Prometheus metrics; 0: any free one.")] = None,
    models: Annotated[list[Path] | None, typer.Option(help="Directory that holds bundles. May be repeated.")] = None,
    load: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:VERSION to load at start. May be repeated.")
    ] = None,
    default: Annotated[str | None, typer.Option(help="Model of requests that name none.")] = None,
    workers: Annotated[int | None, typer.Option(help="Serving processes, which share the ports.")] = None,
    provider: Annotated[str | None, typer.Option(help="auto, engine, tensorrt, cuda or cpu.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Any setting: limits.in_flight=64. May be repeated.")
    ] = None,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the settings as YAML and exit.")] = False,
) -> None:
    """Serve scores. Settings: defaults < --config file < environment CRITIQ_* < these flags."""
    named: dict[str, Any] = {
        "server.host": host,
        "server.rest_port": rest_port,
        "server.grpc_port": grpc_port,
        "server.metrics_port": metrics_port,
        "server.workers": workers,
        "models.directories": models or None,
        "models.load": load or None,
        "models.default": default,
        "runtime.provider": provider,
    }
    settings = settings_from("critiq serve", config, named, set_ or [])
    if print_config:
        sys.stdout.write(print_settings(settings))
        return
    raise typer.Exit(_run(settings, context.obj or ()))


def main(arguments: Sequence[str]) -> int:
    """Runs ``critiq serve ARGUMENTS``; returns the exit status."""
    try:
        return int(
            _cli(args=list(arguments), prog_name="critiq serve", standalone_mode=False, obj=tuple(arguments)) or 0
        )
    except typer.Exit as exit_:
        return exit_.exit_code
    except Exception as error:
        if hasattr(error, "format_message"):  # a usage error
            sys.stderr.write(f"critiq serve: {error.format_message()}\n")
            return 2
        raise


def _raise_open_file_limit() -> None:
    """Every connection is an open file; the usual soft limit of 1,024 is less than a busy server has."""
    if sys.platform != "win32":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _run(settings: Settings, arguments: Sequence[str]) -> int:
    from critiq_server.listening import StartError
    from critiq_server.processes.group import Member
    from critiq_server.telemetry.logs import configure

    configure(settings.log)
    _raise_open_file_limit()
    member = Member.of_this_process()
    try:
        if member is None and settings.server.workers > 1:
            return _supervise(settings, arguments)
        _serve_here(settings, member)
    except StartError as error:
        sys.stderr.write(f"critiq serve: {error}\n")
        return 1
    return 0


def _supervise(settings: Settings, arguments: Sequence[str]) -> int:
    from critiq_server.listening import StartError

    if sys.platform == "win32":
        raise StartError("--workers needs Linux or macOS; start several servers on ports of their own")
    from critiq_server.processes.supervisor import Supervisor

    async def supervise() -> int:
        return await Supervisor(settings, arguments).run()

    return asyncio.run(supervise())


def _of_its_own(settings: Settings, member: Member) -> Settings:
    """What several processes cannot write to together, apart."""
    directory = settings.drift.directory
    if directory is None:
        return settings
    drift = settings.drift.model_copy(update={"directory": directory / f"process-{member.number}"})
    return settings.model_copy(update={"drift": drift})


def _serve_here(settings: Settings, member: Member | None) -> None:
    from critiq_server.app import serve
    from critiq_server.runtime.onnx import share_cores

    if member is not None:
        structlog.contextvars.bind_contextvars(worker=member.number)
        share_cores(member.count)
        settings = _of_its_own(settings, member)
    # What is alive now stays alive: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    # Requests make few cycles; at the default of 700 objects the collector takes 3 % of a busy event loop.
    gc.set_threshold(20_000, 20, 50)
    if sys.platform == "win32":
        asyncio.run(serve(settings, member))
    else:
        import uvloop

        uvloop.run(serve(settings, member))
