"""By which names a server may be called over HTTP.

A page of some website can have its own name point at 127.0.0.1 and then call, from the browser of whoever reads it, a
server that believes to be alone ("DNS rebinding"). The browser sends that name along, and so gives it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from critiq.errors import PermissionDenied
from critiq_server.api.answers import refusal
from critiq_server.settings import LOOPBACK, ServerSettings
from critiq_server.wording import quoted

_LOCAL = ("localhost", "*.localhost")


def named(app: ASGIApp, settings: ServerSettings, host: str, *, asks: bool) -> ASGIApp:
    """``app`` as it may be called at the address ``host``.

    Args:
        asks: whether callers need a key or the like, which no website has.
    """
    names = settings.allowed_hosts or (_LOCAL if host in LOOPBACK and not asks else ())
    return KnownHosts(app, names) if names else app


class KnownHosts:
    """An ASGI application that answers to some names only, and to every address: those cannot be made to point here.

    Args:
        names: ``name`` or ``*.name``.
    """

    def __init__(self, app: ASGIApp, names: Sequence[str]) -> None:
        self._app = app
        self._names = frozenset(name.lower() for name in names if not name.startswith("*"))
        self._endings = tuple(name[1:].lower() for name in names if name.startswith("*"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            named = next((value for header, value in scope["headers"] if header == b"host"), b"").decode("latin-1")
            if not self._knows(named):
                error = PermissionDenied(
                    f"this server does not answer to the name {quoted(named)}; whoever runs it can add the name to the "
                    "setting server.allowed_hosts"
                )
                await refusal(Request(scope), error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _knows(self, named: str) -> bool:
        host = named.partition("]")[0].lstrip("[") if named.startswith("[") else named.rpartition(":")[0] or named
        host = host.lower().rstrip(".")
        if not host or host in self._names or host.endswith(self._endings):
            return True
        try:
            ip_address(host)
        except ValueError:
            return False
        return True
