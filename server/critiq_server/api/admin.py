"""For administrators: profiles of the running server, and where its threads stand. REST only."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from critiq.errors import InvalidArgument, PermissionDenied
from critiq_server.api.aliases import refuse_other_sites
from critiq_server.api.answers import operation
from critiq_server.api.disconnects import unless_gone
from critiq_server.security.guard import audited
from critiq_server.telemetry.profiling import FORMS, LONGEST, EventLoopProfiler, threads_and_tasks

_TYPES = {"html": "text/html; charset=utf-8", "speedscope": "application/json", "text": "text/plain; charset=utf-8"}
_PARAMETERS = [
    {
        "name": "seconds",
        "in": "query",
        "description": f"How long it is looked on, at most {LONGEST:g}.",
        "schema": {"type": "number", "default": 5, "exclusiveMinimum": 0, "maximum": LONGEST},
    },
    {
        "name": "format",
        "in": "query",
        "description": "A web page, a file for speedscope.app, or text.",
        "schema": {"type": "string", "enum": list(FORMS), "default": "html"},
    },
]


def add_admin(app: FastAPI, profiler: EventLoopProfiler | None) -> None:
    """Adds the routes; without a ``profiler`` they say that the settings do not allow it."""
    described = operation(None, None, "Profile the event loop")
    described["openapi_extra"] = {"parameters": _PARAMETERS}
    described["responses"][200]["content"] = {kind.partition(";")[0]: {} for kind in _TYPES.values()}

    @app.post("/v1/admin/profile", **described)
    async def profile(request: Request) -> Response:
        refuse_other_sites(request)
        asked = request.query_params
        seconds, form = asked.get("seconds", "5"), asked.get("format", "html")
        with audited("profile", seconds=seconds):
            allowed = _allowed(profiler)
            try:
                duration = float(seconds)
            except ValueError:
                raise InvalidArgument(f"{seconds[:32]!r} is no number", field="seconds") from None
            found = await unless_gone(request, allowed.profile(duration, form))
        return Response(found, media_type=_TYPES[form])

    described = operation(None, None, "Where each thread and task stands")
    described["responses"][200]["content"] = {"text/plain": {}}

    @app.get("/v1/admin/threads", **described)
    async def threads(request: Request) -> Response:
        with audited("threads"):
            _allowed(profiler)
            found = threads_and_tasks()
        return Response(found, media_type=_TYPES["text"])


def _allowed(profiler: EventLoopProfiler | None) -> EventLoopProfiler:
    if profiler is None:
        raise PermissionDenied("this server may not be profiled; its setting telemetry.profiling is false")
    return profiler
