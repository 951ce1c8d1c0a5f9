"""A replica: one whole critiq server in an actor of Ray's."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import structlog
from ray import serve, util
from ray.serve.grpc_util import RayServegRPCContext
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from critiq_server.app import App
from critiq_server.ray_serve.arguments import Arguments, replica_settings
from critiq_server.ray_serve.directory import BEAT_SECONDS, Endpoints
from critiq_server.ray_serve.frames import Frame, Request
from critiq_server.ray_serve.methods import STREAMS, UNARY, name_of
from critiq_server.ray_serve.relay import Relay
from critiq_server.ray_serve.routes import ThroughIngress, routes
from critiq_server.ray_serve.scaling import IN_FLIGHT
from critiq_server.telemetry.logs import configure

logger = structlog.get_logger("critiq")

_ANYWHERE = ("0.0.0.0", "::")  # noqa: S104


class Replica:
    """What Ray makes in an actor. Calls through Ray's ingress and direct ones meet in the same server.

    Args:
        arguments: of the application.
        directory: where it says that it is there.

    Raises:
        StartError: the server cannot start; Ray tries again, and ``serve status`` shows why.
    """

    async def __init__(  # type: ignore[misc]  # Ray awaits it
        self, arguments: Arguments, directory: DeploymentHandle[Any]
    ) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="critiq-"))  # only this user may enter
        socket = self._folder / "grpc"
        settings = replica_settings(arguments, socket)
        configure(settings.log)
        self._directory = directory
        self._app = App(settings, routes(directory))
        await self._app.start()
        self._relay = Relay(socket)
        self._endpoints = self._where()
        self._beating = asyncio.create_task(self._beat())
        logger.info("replica serves", replica=self._endpoints.replica, grpc=self._endpoints.grpc)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """The routes that Ray's HTTP ingress leads to."""
        return ThroughIngress(self._app.http)

    async def check_health(self) -> None:
        """Raises if the default model is not served: Ray then replaces the replica."""
        if not self._app.ready:
            raise RuntimeError("the default model is not served; the replica's log says why")

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What :func:`critiq_server.ray_serve.scaling.by_pictures` goes by."""
        return {IN_FLIGHT: float(self._app.service.admission.items)}

    async def __del__(self) -> None:
        """Ray calls this once its own calls are answered: takes no new direct ones, answers those under way."""
        self._beating.cancel()
        with contextlib.suppress(Exception):  # the directory may have gone first
            await asyncio.wait_for(self._directory.forget.remote(self._endpoints.replica), 1.0)
        await self._app.stop()
        await self._relay.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _beat(self) -> None:
        while True:
            try:
                await self._directory.note.remote(self._endpoints)
            except Exception as error:  # the directory restarts: the next beat finds it again
                logger.warning("the directory of replicas does not answer", why=type(error).__name__)
            await asyncio.sleep(BEAT_SECONDS)

    def _where(self) -> Endpoints:
        app, node = self._app, util.get_node_ip_address()  # type: ignore[no-untyped-call]
        host = app.settings.server.host
        host = node if host in _ANYWHERE else host
        name = serve.get_replica_context().replica_id.unique_id
        host = f"[{host}]" if ":" in host else host
        return Endpoints(name, node, f"{host}:{app.grpc_port}", f"{host}:{app.rest_port}", f"{host}:{app.metrics_port}")


def _unary(method: str) -> Callable[..., Any]:
    async def call(self: Replica, request: Request, grpc_context: RayServegRPCContext) -> Frame:
        return await self._relay.unary(method, request, grpc_context.invocation_metadata())

    return call


def _stream(method: str) -> Callable[..., Any]:
    async def call(
        self: Replica, requests: AsyncIterator[bytes], grpc_context: RayServegRPCContext
    ) -> AsyncIterator[Frame]:
        async for frame in self._relay.stream(method, requests, grpc_context.invocation_metadata()):
            yield frame

    return call


# Ray looks for a method with the call's name.
for _method in UNARY:
    setattr(Replica, name_of(_method), _unary(_method))
for _method in STREAMS:
    setattr(Replica, name_of(_method), _stream(_method))
