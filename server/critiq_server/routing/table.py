"""The aliases of one server: which there are, and what requests that name them get."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from critiq.aliases import Alias
from critiq.errors import InvalidArgument
from critiq_server.routing.keys import choose
from critiq_server.wording import quoted

DEFAULT = "default"
"""Name of the alias that answers requests that name no model."""


@dataclass(frozen=True, slots=True)
class Route:
    """What a request gets: a model, a version (empty: the newest loaded), and the alias that led there, if one did."""

    model: str
    version: str
    alias: str = ""


class Aliases:
    """Used from the event loop only. An alias is replaced as a whole, so every request sees the old or the new one."""

    def __init__(self) -> None:
        self._by_name: dict[str, Alias] = {}

    def __iter__(self) -> Iterator[Alias]:
        return iter(sorted(self._by_name.values(), key=lambda alias: alias.name))

    def __len__(self) -> int:
        return len(self._by_name)

    def get(self, name: str) -> Alias | None:
        return self._by_name.get(name)

    def put(self, alias: Alias) -> None:
        self._by_name[alias.name] = alias

    def drop(self, name: str) -> None:
        self._by_name.pop(name, None)

    def meant(self, name: str) -> Alias | None:
        """The alias that answers requests for the model ``name`` (empty: they name none), if one does."""
        return self._by_name.get(name or DEFAULT) if self._by_name else None

    def route(self, name: str, version: str, key: Callable[[], bytes]) -> Route | None:
        """Where the alias ``name`` sends a request; ``None`` if there is no such alias.

        Args:
            name: what the request calls its model; empty: nothing.
            version: what it asks for.
            key: gives the request's key; only called where there are several targets.

        Raises:
            InvalidArgument: an alias is named together with a version.
        """
        alias = self.meant(name)
        if alias is None:
            return None
        if version and name:
            raise InvalidArgument(
                f"{name!r} is an alias, which says itself which version answers; name a model to have version "
                f"{quoted(version)}",
                field="target.version",
            )
        if version:
            return Route(alias.main.model, version)
        target = choose(alias.targets, key()) if len(alias.targets) > 1 else alias.targets[0]
        return Route(target.model, target.version, alias.name)

    def pointing_at(self, model: str, version: str) -> list[str]:
        """Names of the aliases that have this version as a target."""
        return [
            alias.name
            for alias in self
            if any((target.model, target.version) == (model, version) for target in alias.targets)
        ]

    def holding(self, model: str, version: str) -> str:
        """What keeps this version from being unloaded, in words; empty if nothing does."""
        if names := self.pointing_at(model, version):
            return f"the alias {names[0]!r} points at it"
        for alias in self:
            shadow = alias.shadow
            if shadow is not None and (shadow.model, shadow.version) == (model, version):
                return f"it is the shadow of the alias {alias.name!r}"
        return ""
