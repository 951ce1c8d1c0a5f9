"""The application: ``import_path: critiq_server.ray_serve.application:build`` in the file for ``serve deploy``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.schema import LoggingConfig

from critiq_server.ray_serve.arguments import read_arguments, replica_settings
from critiq_server.ray_serve.directory import Directory
from critiq_server.ray_serve.replica import Replica

_QUIET = LoggingConfig(enable_access_log=False)  # a replica's own log.access has it, if wanted

_DIRECTORY: Any = serve.deployment(
    Directory, name="Directory", num_replicas=1, ray_actor_options={"num_cpus": 0}, logging_config=_QUIET
)
# What `serve deploy` is told goes before these. A replica refuses by itself what is too much, with a hint; Ray's limits
# only keep its queues from growing without one.
_REPLICA: Any = serve.deployment(
    serve.ingress()(Replica),
    name="Scorer",
    max_ongoing_requests=256,
    max_queued_requests=1024,
    backpressure_config={"status_code": 429, "retry_after_s": 1.0},  # over HTTP; over gRPC it is RESOURCE_EXHAUSTED
    graceful_shutdown_timeout_s=60.0,
    graceful_shutdown_wait_loop_s=1.0,
    health_check_period_s=5.0,
    health_check_timeout_s=15.0,
    logging_config=_QUIET,
)


def build(args: Mapping[str, Any]) -> Application:
    """The graph of deployments: ``Scorer`` takes the calls, ``Directory`` knows where its replicas listen.

    Args:
        args: as :class:`~critiq_server.ray_serve.arguments.Arguments` describes. Ray logs them: no secrets.

    Raises:
        critiq_server.ray_serve.arguments.SettingsError: the settings cannot be used.
    """
    arguments = read_arguments(args)
    replica_settings(arguments, Path("grpc"))  # wrong ones are said here, not by replicas that fail again and again
    application: Application = _REPLICA.bind(arguments, _DIRECTORY.bind())
    return application
