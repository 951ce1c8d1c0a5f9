"""``critiq serve --workers N``: starts N serving processes, gives them shared sockets, replaces one that dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge
from starlette.types import ASGIApp

from critiq_server.api.access import METRICS, Guarded
from critiq_server.api.hosts import named
from critiq_server.api.metrics import metrics_app
from critiq_server.listening import HttpFace, StartError, check_free, in_url, open_socket, taken
from critiq_server.processes.group import VARIABLE, Member, talk
from critiq_server.processes.merging import MergedMetrics
from critiq_server.security.guard import open_guard
from critiq_server.security.keys import KeysError
from critiq_server.security.tls import Certificates, TlsError
from critiq_server.settings import Settings
from critiq_server.stopping import Stopping

logger = structlog.get_logger("critiq")

_POLL = 0.05
_QUICK_DEATH = 60.0
"""Seconds within which a death counts as one more in a row."""
_LONGEST_PAUSE = 30.0
_MOST_DEATHS = 10
"""Beyond these the pause grows no more."""
_AFTER_DRAIN = 10.0
"""Seconds beyond ``server.drain_seconds`` after which a process that does not end is killed."""


@dataclass(eq=False)
class _Process:
    """One serving process."""

    member: Member
    running: asyncio.subprocess.Process
    started: float
    served: bool = False

    async def is_ready(self) -> bool:
        if not self.member.path.exists():
            return False
        async with talk(self.member.path, seconds=1.0) as http:
            try:
                return (await http.get("/ready")).status_code == httpx.codes.OK
            except httpx.TransportError:
                return False


class Supervisor:
    """Runs ``critiq serve ARGUMENTS`` several times. Serves nothing itself but the metrics of all of them.

    Args:
        arguments: of ``critiq serve``; each process reads its settings from them anew.
    """

    def __init__(self, settings: Settings, arguments: Sequence[str]) -> None:
        self._settings, self._arguments = settings, tuple(arguments)
        self._count = settings.server.workers
        self._processes: dict[int, _Process] = {}
        """Those that serve, by number."""
        self._all: set[_Process] = set()
        """These, and those that are still starting or stopping."""
        self._generation = 0
        self._stopping = Stopping(self._kill_all)
        self._rolling = asyncio.Lock()
        self._replacing = [asyncio.Lock() for _ in range(self._count)]
        """Held while a number's process is replaced: one that does not start must not keep the others from it."""
        self._watching: list[asyncio.Task[None]] = []

    async def run(self) -> int:
        """Until SIGTERM or SIGINT; returns the exit status. SIGHUP replaces the processes one after the other.

        Raises:
            StartError: a port is taken, or a process could not start.
        """
        loop = asyncio.get_running_loop()
        self._directory = Path(tempfile.mkdtemp(prefix="critiq-"))
        lifeline, self._lifeline = os.pipe()
        self._lifeline_end = lifeline
        try:
            try:
                await self._listen()
            except (KeysError, TlsError) as error:
                raise StartError(str(error)) from error
            rolls: set[asyncio.Task[None]] = set()

            def roll() -> None:
                task = asyncio.create_task(self._roll())
                rolls.add(task)
                task.add_done_callback(rolls.discard)

            loop.add_signal_handler(signal.SIGHUP, roll)
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, self._stopping.ask)
            metrics = asyncio.create_task(self._metrics_face.serve(sockets=[self._metrics_socket]))
            await self._start_all()
            keepers = [asyncio.create_task(self._keep(number)) for number in range(self._count)]
            await self._stopping.asked.wait()
            for task in (*keepers, *rolls, *self._watching):
                task.cancel()
            clean = await self._stop_all()
            self._metrics_face.should_exit = True
            await metrics
            return 0 if clean else 1
        finally:
            for process in self._all:
                with contextlib.suppress(ProcessLookupError):
                    process.running.kill()
            shutil.rmtree(self._directory, ignore_errors=True)
            link = self._settings.server.grpc_socket
            if link is not None and link.is_symlink() and not link.exists():
                link.unlink()

    async def _listen(self) -> None:
        """Opens what all processes share. Raises ``StartError``, ``KeysError``, ``TlsError``."""
        settings = self._settings
        wanted = [("rest", settings.server.host, settings.server.rest_port, "--rest-port")]
        ports = [
            listener.partition("=")[0]
            for face in (settings.compat.pickle, settings.compat.flow_factory, settings.compat.unirl)
            for listener in face.listeners
        ]
        wanted += [
            (f"compat{number}", settings.compat.host, int(port), "port in compat") for number, port in enumerate(ports)
        ]
        self._sockets: dict[str, socket.socket] = {}
        for what, host, port, flag in wanted:
            self._sockets[what] = open_socket(host, port, flag)
        if settings.server.grpc_socket is not None:
            check_free(settings.server.grpc_socket)
        self._grpc_socket = _reserve(settings.server.host, settings.server.grpc_port)
        self._metrics_socket = open_socket(settings.server.host, settings.server.metrics_port, "--metrics-port")
        certificates = None if settings.security.tls.certificate is None else Certificates(settings.security.tls)
        self._metrics_face = HttpFace(await self._metrics_app(), settings.limits, certificates)
        if certificates is not None:
            self._watching.append(asyncio.create_task(certificates.watch()))

    async def _metrics_app(self) -> ASGIApp:
        registry = CollectorRegistry()
        # Asked in a thread, while processes come and go: so of copies, which are made in one step.
        registry.register(
            MergedMetrics(
                lambda: {entry.member.name: entry.member.path for entry in tuple(self._all)},
                lambda: {entry.member.name for entry in tuple(self._processes.values())},
            )
        )
        ready = Gauge("critiq_processes", "Serving processes that are ready.", registry=registry)
        ready.set_function(lambda: len(self._processes))
        self._restarts = Counter(
            "critiq_process_restarts", "Serving processes that died and were replaced.", registry=registry
        )
        app: ASGIApp = metrics_app(registry)
        guard = await open_guard(self._settings.security.model_copy(update={"limits_directory": self._limits}))
        if guard is not None:
            self._watching.append(asyncio.create_task(guard.watch()))
            app = Guarded(app, guard, METRICS)
        server = self._settings.server
        return named(app, server, server.host, asks=guard is not None)

    async def _start_all(self) -> None:
        """Raises ``StartError`` if one of them ends before it is ready; it has said why."""
        started = [await self._spawn(number) for number in range(self._count)]
        for process in started:
            if not await self._wait_ready(process):
                if self._stopping.asked.is_set():
                    return
                raise StartError(
                    f"process {process.member.number} of {self._count} ended with status {process.running.returncode} "
                    "before it was ready; the log above says why"
                )
        self._processes = {process.member.number: process for process in started}
        host = in_url(self._settings.server.host)
        http, grpc = ("http", "") if self._settings.security.tls.certificate is None else ("https", "grpcs://")
        rest = self._sockets["rest"].getsockname()[1]
        metrics = self._metrics_socket.getsockname()[1]
        logger.info(
            "serving",
            rest=f"{http}://{host}:{rest}",
            grpc=f"{grpc}{host}:{self._grpc_socket.getsockname()[1]}",
            metrics=f"{http}://{host}:{metrics}/metrics",
            docs=f"{http}://{host}:{rest}/docs",
            workers=self._count,
        )

    async def _spawn(self, number: int) -> _Process:
        self._generation += 1
        sockets = {what: opened.fileno() for what, opened in self._sockets.items()}
        member = Member(
            number=number,
            count=self._count,
            directory=self._directory,
            name=f"{number}-{self._generation}",
            grpc_port=self._grpc_socket.getsockname()[1],
            sockets=sockets,
            lifeline=self._lifeline_end,
        )
        running = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "critiq.cli",
            "serve",
            *self._arguments,
            env={**self._environment(), VARIABLE: member.text()},
            pass_fds=(*sockets.values(), self._lifeline_end),
            process_group=0,  # Ctrl-C at a terminal is for this process, which tells the others
        )
        process = _Process(member, running, time.monotonic())
        self._all.add(process)
        return process

    async def _try_to_spawn(self, number: int) -> _Process | None:
        """``None``: the machine has no memory or no room for another process just now; the log says so."""
        try:
            return await self._spawn(number)
        except OSError as error:
            logger.error("a process cannot be started", number=number, why=str(error))
            return None

    def _environment(self) -> Mapping[str, str]:
        """With places of this group for what all processes must have in common, where the settings name none."""
        places = {}
        if self._settings.models.state_file is None:
            places["CRITIQ_MODELS__STATE_FILE"] = str(self._directory / "aliases.json")
        if self._settings.security.limits_directory is None:
            places["CRITIQ_SECURITY__LIMITS_DIRECTORY"] = str(self._limits)
        return {**os.environ, **places}

    @property
    def _limits(self) -> Path:
        return self._settings.security.limits_directory or self._directory / "limits"

    async def _wait_ready(self, process: _Process) -> bool:
        """Whether it has become ready; false: it ended, took too long and was ended, or all are to stop."""
        limit = time.monotonic() + self._settings.server.start_seconds
        while process.running.returncode is None and not self._stopping.asked.is_set():
            if await process.is_ready():
                process.served = True
                return True
            if time.monotonic() > limit:
                logger.error("a process did not become ready in time and is killed", number=process.member.number)
                process.running.kill()
                await process.running.wait()
            await asyncio.sleep(_POLL)
        if process.running.returncode is not None:
            self._forget(process)
        return False

    def _forget(self, process: _Process) -> None:
        self._all.discard(process)
        process.member.path.unlink(missing_ok=True)

    async def _keep(self, number: int) -> None:
        """Puts another process in the place of one that died, for ever."""
        deaths = 0
        while True:
            process = self._processes[number]
            status = await process.running.wait()
            if self._processes.get(number) is not process:
                continue  # it was replaced
            del self._processes[number]
            self._forget(process)
            async with self._replacing[number]:
                if number in self._processes:
                    continue  # another one was starting already
                deaths = deaths + 1 if time.monotonic() - process.started < _QUICK_DEATH else 0
                while True:
                    pause = min(_LONGEST_PAUSE, 0.5 * 2.0**deaths) if deaths else 0.0
                    logger.error("a process died; starting another", number=number, status=status, pause_seconds=pause)
                    self._restarts.inc()
                    await asyncio.sleep(pause)
                    instead = await self._try_to_spawn(number)
                    if instead is not None and await self._wait_ready(instead):
                        self._processes[number] = instead
                        logger.info("process ready", number=number)
                        break
                    if instead is not None:
                        status = instead.running.returncode or 0
                    deaths = min(deaths + 1, _MOST_DEATHS)

    async def _roll(self) -> None:
        """Replaces the processes one after the other; each serves until the one that takes its place is ready."""
        async with self._rolling:
            if not self._processes:
                return  # they are only starting
            for number in range(self._count):
                async with self._replacing[number]:
                    if not await self._replace(number):
                        return
            logger.info("all processes replaced")

    async def _replace(self, number: int) -> bool:
        before, instead = self._processes.get(number), await self._try_to_spawn(number)
        if instead is None:
            return False
        if not await self._wait_ready(instead):
            status = instead.running.returncode
            logger.error("the new process did not start; the others stay as they are", number=number, status=status)
            return False
        self._processes[number] = instead
        if before is not None:
            await self._end(before)
        return True

    async def _end(self, process: _Process) -> bool:
        """Lets it answer what it accepted; whether nothing that it accepted was lost."""
        with contextlib.suppress(ProcessLookupError):
            process.running.terminate()
        try:
            await asyncio.wait_for(process.running.wait(), self._settings.server.drain_seconds + _AFTER_DRAIN)
        except TimeoutError:
            logger.error("a process did not end in time and is killed", number=process.member.number)
            process.running.kill()
            await process.running.wait()
        self._forget(process)
        return process.running.returncode == 0 or not process.served

    async def _stop_all(self) -> bool:
        return all(await asyncio.gather(*(self._end(process) for process in list(self._all))))

    def _kill_all(self) -> None:
        for process in self._all:
            with contextlib.suppress(ProcessLookupError):
                process.running.kill()


def _reserve(host: str, port: int) -> socket.socket:
    """Holds a port on which several processes will listen, without listening. Raises ``StartError`` if it is taken.

    First alone, then as one of several: whoever wants to share a port is not told that others use it already.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as alone:
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            port = alone.getsockname()[1]
        shared = socket.socket(family)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((host, port))
    except OSError as error:
        raise StartError(taken(host, port, error, "--grpc-port")) from error
    return shared
