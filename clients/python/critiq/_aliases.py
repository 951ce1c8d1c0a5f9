"""What both clients do with aliases: the requests, and the methods in a blocking and an asyncio form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar
from urllib.parse import quote

from critiq import aliases
from critiq._base import LOAD_TIMEOUT, BaseClient
from critiq._requests import Call
from critiq.aliases import Alias, AliasTarget, ShadowReport, parse_target
from critiq.errors import InvalidArgument
from critiq.v1 import models_pb2

T = TypeVar("T")

Targets = Sequence[AliasTarget | str]


class AliasMethods(BaseClient):
    """The blocking client's methods for aliases: names for model versions, which the server's operators move."""

    def _run(self, call: Call[T], timeout: float | None) -> T:
        raise NotImplementedError  # the client's own

    def aliases(self, *, timeout: float | None = None) -> list[Alias]:
        """All of them, by name."""
        return self._run(_list(), self._limit(timeout))

    def set_alias(
        self,
        name: str,
        targets: Targets,
        *,
        shadow: AliasTarget | str | None = None,
        timeout: float | None = LOAD_TIMEOUT,
    ) -> Alias:
        """Points an alias at model versions from now on; what is not loaded is loaded first. Never retried.

        Args:
            name: requests may use it as a model's name; ``default`` answers those that name none.
            targets: ``MODEL:VERSION``, or several with their shares, ``MODEL:VERSION=PERCENT``. The shares add up to
                100; of texts one may leave its share out. Each request goes to one of them by its routing key: the
                header ``x-critiq-routing-key`` (``headers`` of the client), else the API key's name, else the picture.
            shadow: scores this share of what was answered once more, for comparison; see :meth:`shadow_report`.
        """
        return self._run(_set(name, targets, shadow), self._limit(timeout))

    def promote_alias(self, name: str, *, timeout: float | None = LOAD_TIMEOUT) -> Alias:
        """Gives all requests to the last of several targets, or to the shadow's candidate. Never retried."""
        return self._run(_promote(name), self._limit(timeout))

    def rollback_alias(self, name: str, *, timeout: float | None = LOAD_TIMEOUT) -> Alias:
        """Points an alias to where it pointed before the newest of its targets came in. Never retried."""
        return self._run(_rollback(name), self._limit(timeout))

    def remove_alias(self, name: str, *, timeout: float | None = None) -> None:
        """Forgets an alias. Never retried."""
        self._run(_remove(name), self._limit(timeout))

    def shadow_report(self, name: str, *, timeout: float | None = None) -> ShadowReport:
        """How far the scores of an alias's shadow agree with those that callers got."""
        return self._run(_report(name), self._limit(timeout))


class AsyncAliasMethods(BaseClient):
    """The same for asyncio."""

    async def _run(self, call: Call[T], timeout: float | None) -> T:
        raise NotImplementedError  # the client's own

    async def aliases(self, *, timeout: float | None = None) -> list[Alias]:
        """See :meth:`critiq.Client.aliases`."""
        return await self._run(_list(), self._limit(timeout))

    async def set_alias(
        self,
        name: str,
        targets: Targets,
        *,
        shadow: AliasTarget | str | None = None,
        timeout: float | None = LOAD_TIMEOUT,
    ) -> Alias:
        """See :meth:`critiq.Client.set_alias`."""
        return await self._run(_set(name, targets, shadow), self._limit(timeout))

    async def promote_alias(self, name: str, *, timeout: float | None = LOAD_TIMEOUT) -> Alias:
        """See :meth:`critiq.Client.promote_alias`."""
        return await self._run(_promote(name), self._limit(timeout))

    async def rollback_alias(self, name: str, *, timeout: float | None = LOAD_TIMEOUT) -> Alias:
        """See :meth:`critiq.Client.rollback_alias`."""
        return await self._run(_rollback(name), self._limit(timeout))

    async def remove_alias(self, name: str, *, timeout: float | None = None) -> None:
        """See :meth:`critiq.Client.remove_alias`."""
        await self._run(_remove(name), self._limit(timeout))

    async def shadow_report(self, name: str, *, timeout: float | None = None) -> ShadowReport:
        """See :meth:`critiq.Client.shadow_report`."""
        return await self._run(_report(name), self._limit(timeout))


def _list() -> Call[list[Alias]]:
    def read(response: models_pb2.ListAliasesResponse) -> list[Alias]:
        return [aliases.alias_from_proto(alias) for alias in response.aliases]

    request = models_pb2.ListAliasesRequest()
    return Call("Models/ListAliases", "GET", "/v1/aliases", request, models_pb2.ListAliasesResponse, read, body=False)


def _set(name: str, targets: Targets, shadow: AliasTarget | str | None) -> Call[Alias]:
    if isinstance(targets, str):
        raise InvalidArgument(f"give a sequence, for instance [{targets!r}]", field="targets")
    request = models_pb2.SetAliasRequest(
        name=name,
        targets=[_target(target, f"targets[{position}]") for position, target in enumerate(targets)],
        shadow=_target(shadow, "shadow") if shadow is not None else None,
    )
    return Call("Models/SetAlias", "PUT", _path(name), request, models_pb2.Alias, aliases.alias_from_proto, safe=False)


def _promote(name: str) -> Call[Alias]:
    return _moved("PromoteAlias", "promote", name, models_pb2.PromoteAliasRequest(name=name))


def _rollback(name: str) -> Call[Alias]:
    return _moved("RollbackAlias", "rollback", name, models_pb2.RollbackAliasRequest(name=name))


def _moved(method: str, verb: str, name: str, request: Any) -> Call[Alias]:
    path = f"{_path(name)}/{verb}"
    read = aliases.alias_from_proto
    return Call(f"Models/{method}", "POST", path, request, models_pb2.Alias, read, body=False, safe=False)


def _remove(name: str) -> Call[None]:
    request = models_pb2.RemoveAliasRequest(name=name)
    kind = models_pb2.RemoveAliasResponse
    return Call("Models/RemoveAlias", "DELETE", _path(name), request, kind, lambda _: None, body=False, safe=False)


def _report(name: str) -> Call[ShadowReport]:
    request = models_pb2.GetShadowReportRequest(name=name)
    path = f"/v1/models/{quote(name, safe='')}/shadow"
    read = aliases.report_from_proto
    return Call("Models/GetShadowReport", "GET", path, request, models_pb2.ShadowReport, read, body=False)


def _target(target: AliasTarget | str, field: str) -> models_pb2.AliasTarget:
    if isinstance(target, AliasTarget):
        return aliases.target_to_proto(target)
    parsed, has_share = parse_target(target, field)
    message = aliases.target_to_proto(parsed)
    if not has_share:
        message.ClearField("percent")
    return message


def _path(name: str) -> str:
    return f"/v1/aliases/{quote(name, safe='')}"
