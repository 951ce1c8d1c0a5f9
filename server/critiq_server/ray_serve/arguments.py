"""What an application is told: the settings of its replicas."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from critiq_server.settings import Settings, load_settings

_FREE_PORTS = {"rest_port": 0, "grpc_port": 0, "metrics_port": 0}


class Arguments(BaseModel):
    """``args`` of the application in the file for ``serve deploy``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: Path | None = Field(None, description="YAML file with critiq's settings, there on every machine.")
    settings: dict[str, dict[str, Any]] = Field({}, description="Settings by section; they win over the file's.")


class SettingsError(ValueError):
    """The replicas' settings cannot be used; the message names each that is wrong, never its value."""


def read_arguments(args: Mapping[str, Any]) -> Arguments:
    """Raises :class:`SettingsError` for what is none."""
    try:
        return Arguments.model_validate(args)
    except ValidationError as error:
        raise SettingsError(f"args of the application: {_told(error)}") from None


def replica_settings(arguments: Arguments, socket: Path) -> Settings:
    """The settings of one replica.

    Several share a machine, so the ports are any free ones unless ``arguments.settings`` name them; a file's are not
    looked at.

    Args:
        socket: where the replica's gRPC face listens for what comes through Ray.

    Raises:
        SettingsError: a value is wrong, or the file is missing or unreadable.
    """
    server = {**_FREE_PORTS, **arguments.settings.get("server", {}), "grpc_socket": socket}
    try:
        return load_settings(arguments.config, {**arguments.settings, "server": server})
    except ValidationError as error:
        raise SettingsError(_told(error)) from None
    except (OSError, ValueError) as error:
        raise SettingsError(str(error)) from None


def _told(error: ValidationError) -> str:
    """Without the values, which may be secrets."""
    problems = error.errors(include_url=False, include_input=False)
    return "; ".join(f"{'.'.join(map(str, problem['loc'])) or 'settings'}: {problem['msg']}" for problem in problems)
