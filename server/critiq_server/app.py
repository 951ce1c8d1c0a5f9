"""The server as a process: builds the parts, listens, stops cleanly."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import structlog
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from critiq_server.api.access import METRICS, SCORE, Guarded, Scopes
from critiq_server.api.compat.faces import listeners
from critiq_server.api.grpc_api import GrpcFace
from critiq_server.api.hosts import named
from critiq_server.api.metrics import metrics_app
from critiq_server.api.rest import rest_app
from critiq_server.api.tracing import TracedHttp
from critiq_server.assembly import Assembly
from critiq_server.jobs.operations import Jobs
from critiq_server.jobs.store import JobStoreError
from critiq_server.listening import HttpFace, StartError, check_free, in_url, open_socket, taken
from critiq_server.moderation import Moderation, load_policies
from critiq_server.others import ALONE
from critiq_server.processes.group import Member
from critiq_server.processes.private import private_app
from critiq_server.scoring.policy_files import PolicyError
from critiq_server.security.guard import open_guard
from critiq_server.security.keys import KeysError
from critiq_server.security.tls import Certificates, TlsError
from critiq_server.settings import LOOPBACK, Settings
from critiq_server.stopping import Stopping
from critiq_server.telemetry import traces
from critiq_server.telemetry.faults import again_and_again
from critiq_server.telemetry.gpu import watch_gpus
from critiq_server.telemetry.loop import watch_lag
from critiq_server.telemetry.metrics import Metrics
from critiq_server.telemetry.profiling import EventLoopProfiler, ProfilingUnavailable

logger = structlog.get_logger("critiq")


class App:
    """One server process. Use :meth:`start`, then :meth:`stop`; ports are in ``rest_port`` and so on once started,
    those of the compat listeners in ``compat_ports``, in the order of pickle, flow_factory, unirl, cosmos.

    Args:
        routes: further ones of the REST face, which go before its own.
        member: what several processes share of which this is one.
    """

    def __init__(self, settings: Settings, routes: Sequence[BaseRoute] = (), member: Member | None = None) -> None:
        self.settings = settings
        self._member = member
        self.metrics = Metrics()
        watch_gpus(self.metrics.registry)
        self._routes = routes
        self.rest_port = self.grpc_port = self.metrics_port = 0
        self.compat_ports: list[int] = []
        self._compat: list[tuple[HttpFace, socket.socket]] = []
        self._faces: list[HttpFace] = []
        self._serving: list[asyncio.Task[None]] = []
        self._watching: list[asyncio.Task[None]] = []
        self._opened = AsyncExitStack()
        """What must be closed: all at a stop, what there is of it at a start that fails."""
        self._ready = False
        self._health_updates: set[asyncio.Future[None]] = set()

    async def start(self) -> None:
        """Loads the models and listens. Of a start that fails nothing is left.

        Raises:
            StartError: a port or socket is taken, a store on disk cannot be opened, the certificate, the file of keys
                or a moderation policy cannot be used, or no model could be loaded.
        """
        try:
            await self._start()
        except BaseException:
            self._ready = False
            await self._opened.aclose()
            raise

    async def _start(self) -> None:
        if self.settings.server.grpc_socket is not None and self._member is None:
            check_free(self.settings.server.grpc_socket)
        try:
            self._certificates = self._read_certificates()
            self._guard = await open_guard(self.settings.security)
            if self._guard is not None:
                self._opened.callback(self._guard.close)
            self._policies = load_policies(self.settings.moderation)
            profiler = EventLoopProfiler() if self.settings.telemetry.profiling else None
            self._tracer = traces.start(self.settings.telemetry.traces)
        except (TlsError, KeysError, PolicyError, ProfilingUnavailable, traces.TracesUnavailable) as error:
            raise StartError(str(error)) from error
        self._opened.push_async_callback(traces.stop, self._tracer)
        if self._member is not None:
            await self._member.take_turn()
        self._assembly = Assembly(
            self.settings,
            self.metrics,
            tuple(self._policies),
            self._on_model_change,
            others=self._member or ALONE,
        )
        self._opened.push_async_callback(self._assembly.close)
        self.service = self._assembly.service
        shared = self._member is not None
        self.moderation = Moderation(self.service, self._policies)
        self.jobs = Jobs(self.settings.jobs, self.moderation, self.metrics, shared=shared)
        self._opened.push_async_callback(self.jobs.close)
        try:
            await self.jobs.open()
        except JobStoreError as error:
            raise StartError(str(error)) from error
        traced = self._tracer is not None or self.settings.log.access
        guard = self._guard
        self._grpc = GrpcFace(
            self.service, self._is_ready, self.moderation, self.jobs, guard, traced=traced, shared=shared
        )
        self._opened.push_async_callback(self._hang_up)
        rest = rest_app(self.service, self._is_ready, self.moderation, self.jobs, profiler)
        rest.router.routes[:0] = self._routes
        self.http = self._watched(rest)
        self._rest = self._face(self.http, "rest")
        if self._member is not None:  # the others answer until this one can
            await self._join(self._member)
        self._listen()
        for face, opened in ((self._rest, self._rest_socket), *self._compat):
            self._serve(face, opened)
        if self._member is None:
            self._serve(self._metrics, self._metrics_socket)
        self._watching += [
            asyncio.create_task(watch_lag(self.metrics.loop_lag.observe)),
            asyncio.create_task(self.service.routing.watch()),
        ]
        drift = self.settings.drift
        if drift.enabled:
            looking = again_and_again(drift.check_seconds, "watching for drift", self.service.drift.look)
            self._watching.append(asyncio.create_task(looking))
        self._watching += [
            asyncio.create_task(watched.watch()) for watched in (self._guard, self._certificates) if watched is not None
        ]
        await self._announce(False)  # "" would be healthy from the start
        await self._grpc.set_health("live", True)
        await self._grpc.server.start()
        if self._member is None:
            await self._load_models()
        elif self._member.number == 0 and self.settings.server.grpc_socket is not None:
            self._member.link(self.settings.server.grpc_socket)
        self.jobs.start()
        self._ready = True
        await self._announce(True)

    async def _load_models(self, wanted: Sequence[str] = ()) -> None:
        await self._assembly.load(wanted)
        try:
            self.moderation.check()
        except PolicyError as error:
            raise StartError(str(error)) from error

    async def _join(self, member: Member) -> None:
        """Loads what the others serve, or else what the settings say; from now on the others tell this one, too."""
        private = private_app(self.service, self._is_ready, lambda: self._ready)
        self._metrics = HttpFace(private, self.settings.limits)
        self._serve(self._metrics, member.listen())
        await self._load_models(await member.loaded_elsewhere())
        # What was changed while this one loaded may have been told to it when there was nothing to do yet.
        if due := set(await member.loaded_elsewhere()):
            registry = self.service.registry
            served = {f"{model.name}:{model.version}" for model in registry.list() if model.state == "ready"}
            for entry in sorted(due - served):
                await registry.load(*entry.split(":", 1))
            for entry in sorted(served - due):
                await registry.unload(*entry.split(":", 1))

    async def stop(self, grace: float | None = None) -> None:
        """Takes no new work, answers what was accepted (at most ``grace`` seconds), closes everything."""
        seconds = self.settings.server.drain_seconds if grace is None else grace
        self._ready = False
        await self._announce(False)
        await self.jobs.close()
        self.service.admission.close()
        try:
            await asyncio.wait_for(self.service.admission.drained(), seconds)
        except TimeoutError:
            logger.warning("stopped before everything was answered", left=self.service.admission.items, seconds=seconds)
        await self._opened.aclose()

    def _serve(self, face: HttpFace, opened: socket.socket) -> None:
        self._faces.append(face)
        self._serving.append(asyncio.create_task(face.serve(sockets=[opened])))

    async def _hang_up(self) -> None:
        for face in self._faces:
            face.should_exit = True
        await asyncio.gather(self._grpc.server.stop(1.0), *self._serving, return_exceptions=True)
        for task in self._watching:
            task.cancel()

    @property
    def ready(self) -> bool:
        """Whether it serves its default model."""
        return self._is_ready()

    def _is_ready(self) -> bool:
        return self._ready and self.service.registry.ready

    def _on_model_change(self, name: str, version: str, serving: bool) -> None:
        any_version = any(model.state == "ready" for model in self.service.models.list() if model.name == name)
        for target, healthy in ((f"models/{name}/{version}", serving), (f"models/{name}", any_version)):
            self._tell(self._grpc.set_health(target, healthy))
        if self._ready:
            self._tell(self._announce(self._is_ready()))

    def _tell(self, update: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(update)
        self._health_updates.add(task)
        task.add_done_callback(self._health_updates.discard)

    def _listen(self) -> None:
        server, member = self.settings.server, self._member

        def opened(what: str, host: str, port: int, flag: str) -> socket.socket:
            return open_socket(host, port, flag) if member is None else member.shared(what)

        if server.grpc_socket is not None and (member is None or member.number == 0):
            try:
                self._grpc.bind_socket(server.grpc_socket if member is None else member.grpc_path)
            except OSError as error:
                raise StartError(f"server.grpc_socket: {error}") from error
        self._rest_socket = opened("rest", server.host, server.rest_port, "--rest-port")
        self.rest_port = self._rest_socket.getsockname()[1]
        try:
            port = server.grpc_port if member is None else member.grpc_port
            self.grpc_port = self._grpc.bind(server.host, port, self._certificates)
        except OSError as error:
            raise StartError(taken(server.host, server.grpc_port, error, "--grpc-port")) from error
        if member is None:
            self._metrics = self._face(self._guarded(metrics_app(self.metrics.registry), METRICS), "metrics")
            self._metrics_socket = open_socket(server.host, server.metrics_port, "--metrics-port")
            self.metrics_port = self._metrics_socket.getsockname()[1]
        host = self.settings.compat.host
        for number, listener in enumerate(listeners(self.service)):
            compat = opened(f"compat{number}", host, listener.port, f"port in {listener.setting}")
            self._compat.append((self._face(self._watched(listener.app, SCORE), "compat"), compat))
            self.compat_ports.append(compat.getsockname()[1])
        compat_faces = [face for face, _ in self._compat]
        for name, faces in (("rest", [self._rest]), ("metrics", [self._metrics]), ("compat", compat_faces)):
            self.metrics.connections.labels(name).set_function(partial(_connections, faces))
        if member is None or member.number == 0:
            for address in {server.host, *([host] if self._compat else [])} - set(LOOPBACK):
                self._warn_of_what_is_missing(address)

    def _warn_of_what_is_missing(self, address: str) -> None:
        """At an address that others can reach."""
        if self._guard is None and not self.settings.security.tls.require_client_certificate:
            logger.warning("listening beyond this machine without authentication", host=address)
        elif self._certificates is None:
            logger.warning("listening beyond this machine without TLS: keys can be read on their way", host=address)

    def _read_certificates(self) -> Certificates | None:
        settings = self.settings.security.tls
        if settings.certificate is None:
            return None
        return Certificates(settings, lambda pair: self.metrics.certificate_end.labels("server").set(pair.ends))

    def _face(self, app: ASGIApp, port: str) -> HttpFace:
        host = self.settings.compat.host if port == "compat" else self.settings.server.host
        app = named(app, self.settings.server, host, asks=self._guard is not None)
        dropped = self.metrics.connections_dropped
        return HttpFace(
            app, self.settings.limits, self._certificates, lambda reason: dropped.labels(port, reason).inc()
        )

    def _watched(self, app: ASGIApp, scopes: Scopes | None = None) -> ASGIApp:
        guarded = self._guarded(app, scopes)
        return TracedHttp(guarded) if self._tracer is not None or self.settings.log.access else guarded

    def _guarded(self, app: ASGIApp, scopes: Scopes | None = None) -> ASGIApp:
        return app if self._guard is None else Guarded(app, self._guard, scopes)

    async def _announce(self, serving: bool) -> None:
        for name in ("", "critiq.v1.Scoring", "critiq.v1.Models", "critiq.v1.Jobs", "inference.GRPCInferenceService"):
            await self._grpc.set_health(name, serving)


def _connections(faces: Sequence[HttpFace]) -> int:
    return sum(len(face.server_state.connections) for face in faces)


async def serve(settings: Settings, member: Member | None = None) -> None:
    """Runs until SIGTERM, SIGINT or SIGHUP, then drains. A second SIGTERM or SIGINT stops at once.

    Args:
        member: what several processes share of which this is one. Then the process that started this one decides: to a
            terminal's signals, and to repeated ones, which service managers send to a whole group, this one is deaf.
    """
    app = App(settings, member=member)
    # Not by way of the interpreter's exit, which would wait for the batch that a device is computing.
    stopping = Stopping(lambda: os._exit(1))
    loop = asyncio.get_running_loop()
    if member is None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.ask)
        hangup = getattr(signal, "SIGHUP", None)  # there is none on Windows
        if hangup is not None and signal.getsignal(hangup) is signal.SIG_DFL:  # nohup means it
            loop.add_signal_handler(hangup, stopping.asked.set)
    else:
        loop.add_signal_handler(signal.SIGTERM, stopping.asked.set)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        loop.add_reader(member.lifeline, stopping.asked.set)
    await app.start()
    host = in_url(settings.server.host)
    http, grpc = ("http", "") if settings.security.tls.certificate is None else ("https", "grpcs://")
    (logger.info if member is None else logger.debug)(
        "serving",
        rest=f"{http}://{host}:{app.rest_port}",
        grpc=f"{grpc}{host}:{app.grpc_port}",
        metrics=f"{http}://{host}:{app.metrics_port}/metrics",
        docs=f"{http}://{host}:{app.rest_port}/docs",
        **(
            {"compat": [f"{http}://{in_url(settings.compat.host)}:{port}" for port in app.compat_ports]}
            if app.compat_ports
            else {}
        ),
    )
    await stopping.asked.wait()
    if member is not None:
        loop.remove_reader(member.lifeline)
    logger.info("stopping", under_way=app.service.admission.items, limit_seconds=settings.server.drain_seconds)
    await app.stop()
