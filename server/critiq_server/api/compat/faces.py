"""Which of these faces are on, and where: under ``/compat`` of the REST port, and on ports of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from starlette.applications import Starlette
from starlette.routing import Mount, Route
from starlette.types import ASGIApp

from critiq_server.api.compat import cosmos, flow_factory, pickle_face, unirl
from critiq_server.api.compat.rewards import Rewards
from critiq_server.service import Service
from critiq_server.settings import FaceSettings


@dataclass(frozen=True, slots=True)
class Listener:
    """A port of its own with one face at its root; ``setting`` names where it was asked for."""

    port: int
    setting: str
    app: ASGIApp


@dataclass(frozen=True, slots=True)
class _Face:
    name: str
    settings: FaceSettings
    routes: Callable[[], list[Route]]
    at_root: Callable[[str], list[Route]]
    """Routes of a listener, from what stands behind its port."""


def mounted(service: Service) -> list[Mount]:
    """What the REST port answers under ``/compat``."""
    return [Mount(f"/compat/{face.name}", routes=face.routes()) for face in _faces(service) if face.settings.enabled]


def listeners(service: Service) -> list[Listener]:
    found = []
    for face in _faces(service):
        for listener in face.settings.listeners:
            port, _, behind = listener.partition("=")
            app = Starlette(routes=face.at_root(behind))
            found.append(Listener(int(port), f"compat.{face.name}.listeners {listener}", app))
    return found


def _faces(service: Service) -> list[_Face]:
    settings = service.settings.compat
    rewards = Rewards(service, settings.rewards, settings.timeout_seconds)
    jobs = partial(cosmos.routes, rewards, settings.cosmos)
    return [
        _Face(
            "pickle",
            settings.pickle,
            partial(pickle_face.routes, rewards),
            partial(pickle_face.listener_routes, rewards),
        ),
        _Face(
            "flow_factory",
            settings.flow_factory,
            partial(flow_factory.routes, rewards),
            partial(flow_factory.listener_routes, rewards),
        ),
        _Face("unirl", settings.unirl, partial(unirl.routes, rewards), lambda _: unirl.routes(rewards)),
        _Face("cosmos", settings.cosmos, jobs, lambda _: jobs()),
    ]
