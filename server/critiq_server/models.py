"""What callers ask about models, and administrators do with them: list, load, unload; and who else is told."""

from __future__ import annotations

from critiq import types
from critiq.errors import InvalidArgument, PermissionDenied
from critiq_server.others import Others
from critiq_server.registry import Registry
from critiq_server.routing.operations import Routing
from critiq_server.security.guard import audited


class Models:
    """Lists and changes what is served. Used from the event loop only; methods raise only ``critiq.errors``.

    Args:
        registry: has the models.
        routing: has the aliases, which may need a model.
        others: processes that load and unload the same.
        allowed: whether callers may load and unload.
    """

    def __init__(self, registry: Registry, routing: Routing, others: Others, *, allowed: bool) -> None:
        self._registry = registry
        self._routing = routing
        self._others = others
        self._allowed = allowed

    def list(self) -> list[types.Model]:
        """Every known model version."""
        return self._registry.list()

    def get(self, name: str = "", version: str = "") -> types.Model:
        """One of them; raises ``NotFound``."""
        return self._registry.describe(name, version)

    async def load(self, name: str, version: str = "") -> types.Model:
        """Loads a version; raises ``PermissionDenied`` where the settings do not allow it."""
        with audited("load", model=name, version=version):
            self._check_allowed(name)
            await self._routing.catch_up()
            loaded = await self._registry.load(name, version)
            await self._others.tell("load", name=name, version=loaded.version)
            return loaded

    async def unload(self, name: str, version: str = "") -> None:
        """Unloads a version, or all of a model's."""
        with audited("unload", model=name, version=version):
            self._check_allowed(name)
            await self._routing.catch_up()  # another process may have moved an alias a moment ago
            await self._registry.unload(name, version)
            await self._others.tell("unload", name=name, version=version)

    def _check_allowed(self, name: str) -> None:
        if not name:
            raise InvalidArgument("name the model", field="name")
        if not self._allowed:
            raise PermissionDenied(
                "this server does not let callers load or unload models; its setting models.allow_changes is false"
            )
