"""What administrators do with aliases: point them elsewhere, promote, roll back, remove; and who else is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import structlog

from critiq.aliases import Alias, AliasRoute, AliasTarget, ShadowReport, shared
from critiq.errors import CritiqError, FailedPrecondition, InvalidArgument, NotFound, PermissionDenied, Unavailable
from critiq_server.others import ALONE, Others
from critiq_server.registry import Registry
from critiq_server.routing.agreement import Agreement
from critiq_server.routing.settings import MOST, MOST_TARGETS, AliasSettings, checked_name, checked_shadow
from critiq_server.routing.shadow import Shadows
from critiq_server.routing.state import Stamp, StateError, StateFile
from critiq_server.routing.table import DEFAULT
from critiq_server.scoring.policies import Policy, unfit
from critiq_server.security.guard import audited
from critiq_server.security.limits import caller
from critiq_server.telemetry.faults import internal
from critiq_server.wording import quoted

logger = structlog.get_logger("critiq")

KEPT = 10
"""Routes in an alias's history."""
LOOK_SECONDS = 1.0
"""How often it is looked whether another process has changed the aliases."""

_LONGEST_SPREAD = 20.0
"""Seconds for which a change waits until the other processes have taken it over, and loaded what it needs."""

Asked = Sequence[tuple[AliasTarget, bool]]
"""Targets, each with whether it gives its share."""


class Routing:
    """Changes aliases. Used from the event loop only; methods raise only ``critiq.errors`` unless they say otherwise.

    Args:
        registry: has the aliases, and loads what they point at.
        state: where they are kept beyond this process; ``None``: nowhere.
        allowed: whether callers may change them.
        policies: what moderation policies there are; a target must give what they compare.
        shadows: compare candidates; ``None``: there are none.
        others: serving processes of the same group.
    """

    def __init__(
        self,
        registry: Registry,
        state: StateFile | None = None,
        shadows: Shadows | None = None,
        *,
        allowed: bool = False,
        policies: Collection[Policy] = (),
        others: Others = ALONE,
    ) -> None:
        self._registry = registry
        self._aliases = registry.aliases
        self._state = state
        self._stamp: Stamp | None = None
        self._kept: Mapping[str, Alias | None] = {}
        """What the file held when this process saw it last."""
        self._allowed = allowed
        self._policies = policies
        self._shadows = shadows
        self._others = others
        self._changing = asyncio.Lock()

    def begin(self, settings: Mapping[str, AliasSettings]) -> None:
        """Sets the aliases of the settings, and those of the file in their place, before models are loaded.

        Raises:
            StateError: the file cannot be used.
            CritiqError: an alias of the settings has a name or a target that cannot be.
        """
        for name, given in settings.items():
            try:
                route = AliasRoute(self._exact_all(given.parsed()))
                shadow = given.parsed_shadow()
                alias = Alias(checked_name(name), route, shadow and self._exact(shadow, "shadow"))
                self._check(alias)
            except CritiqError as error:
                raise type(error)(f"models.aliases.{name}: {error.message}") from error
            self._put(name, alias)
        if self._state is None:
            return
        self._stamp = self._state.stamp()
        self._kept = self._state.read()
        for name, kept in self._kept.items():
            given_alias = self._aliases.get(name)
            if given_alias is not None and (kept is None or kept.targets != given_alias.targets):
                logger.warning("the state file overrules the settings' alias", alias=name, file=str(self._state.path))
            self._put(name, kept)

    def wanted(self) -> list[tuple[str, str]]:
        """Model versions that the aliases need, to be loaded."""
        targets = [target for alias in self._aliases for target in (*alias.targets, alias.shadow) if target is not None]
        return list(dict.fromkeys((target.model, target.version) for target in targets))

    def list(self) -> list[Alias]:
        """All, by name."""
        return list(self._aliases)

    def get(self, name: str) -> Alias:
        """Raises ``NotFound``."""
        alias = self._aliases.get(name)
        if alias is None:
            known = ", ".join(entry.name for entry in self._aliases) or "none"
            raise NotFound(f"there is no alias {quoted(name)}; known: {known}", field="name")
        return alias

    async def shadow_report(self, name: str) -> ShadowReport:
        """How far an alias's shadow agrees, by what all processes of the group know.

        Raises:
            NotFound: there is no such alias.
            FailedPrecondition: it has no shadow.
        """
        self._agreement(name)
        replies = await self._others.ask("shadow", {"name": name})
        agreement = self._agreement(name)  # somebody may have changed it meanwhile
        others, processes = replies.read(agreement.fitting)
        return agreement.report() if processes is None else agreement.with_others(others, processes)

    def answers(self) -> Mapping[str, Callable[[Mapping[str, Any]], Awaitable[Any]]]:
        """What this process answers to the others, by what is asked."""

        async def shadow(asked: Mapping[str, Any]) -> Any:
            return self._agreement(asked["name"]).dump()

        async def catch_up(asked: Mapping[str, Any]) -> Any:
            await self.catch_up()
            return True

        return {"shadow": shadow, "catch_up": catch_up}

    async def set(self, name: str, targets: Asked, shadow: AliasTarget | None = None) -> Alias:
        """Points an alias at targets; those that are not loaded are loaded first. See ``Models.SetAlias``."""
        words = " ".join(f"{target}={target.percent:g}" if known else str(target) for target, known in targets)
        with audited("set alias", alias=name, targets=words, shadow=str(shadow or "")):
            self._check_allowed()
            checked_name(name)
            asked = shared(targets)
            if len(asked) > MOST_TARGETS:
                raise InvalidArgument(f"{len(asked)} targets; at most {MOST_TARGETS} are possible", field="targets")
            if shadow is not None:
                checked_shadow(shadow)
            async with self._changing:
                await self._catch_up()
                self._registry.rescan()
                exact = self._exact_all(asked)
                before = self._aliases.get(name)
                alias = await self._change(name, before, exact, shadow and self._exact(shadow, "shadow"))
            await self._spread()
            return alias

    async def promote(self, name: str) -> Alias:
        """Gives all requests to the last of several targets, or to the shadow's candidate."""
        with audited("promote alias", alias=name):
            self._check_allowed()
            async with self._changing:
                await self._catch_up()
                before = self.get(name)
                chosen = before.targets[-1] if len(before.targets) > 1 else before.shadow
                if chosen is None:
                    raise FailedPrecondition(
                        f"the alias {name!r} has the one target {before.main} and no shadow, so there is nothing to "
                        "promote",
                        field="name",
                    )
                shadow = None if before.shadow is None or _same_version(before.shadow, chosen) else before.shadow
                alias = await self._change(name, before, (replace(chosen, percent=100.0),), shadow)
            await self._spread()
            return alias

    async def rollback(self, name: str) -> Alias:
        """Points an alias to where it pointed before the newest of its targets came in."""
        with audited("roll back alias", alias=name):
            self._check_allowed()
            async with self._changing:
                await self._catch_up()
                before = self.get(name)
                now = _versions(before.route)
                position = next((at for at, route in enumerate(before.history) if now - _versions(route)), None)
                if position is None:
                    raise FailedPrecondition(
                        f"nothing is known of where the alias {name!r} pointed before {before.main} came in",
                        field="name",
                    )
                targets, left = before.history[position].targets, before.history[position + 1 :]
                shadow = before.shadow
                if shadow is not None and any(_same_version(shadow, target) for target in targets):
                    shadow = None
                alias = await self._change(name, before, targets, shadow, history=left)
            await self._spread()
            return alias

    async def remove(self, name: str) -> None:
        """Forgets an alias. Raises ``NotFound``, and ``FailedPrecondition`` where the server's models depend on it."""
        with audited("remove alias", alias=name):
            self._check_allowed()
            async with self._changing:
                await self._catch_up()
                self.get(name)
                if name == DEFAULT:
                    self._check_default_model()
                if policy := next((policy for policy in self._policies if policy.model == name), None):
                    raise FailedPrecondition(
                        f"the policy {policy.name!r} version {policy.version!r} is about the alias {name!r}",
                        field="name",
                    )
                await self._keep(name, None)
                self._put(name, None)
            await self._spread()

    def _agreement(self, name: str) -> Agreement:
        self.get(name)
        if self._shadows is None:
            raise FailedPrecondition("this server has no shadows", field="name")
        return self._shadows.agreement(name)

    async def _spread(self) -> None:
        """Has the other processes take over what was changed. Who cannot in time does so by :meth:`watch`."""
        await self._others.ask("catch_up", seconds=_LONGEST_SPREAD)

    async def watch(self) -> None:
        """Takes over what other processes write into the file, for ever."""
        while self._state is not None:
            await asyncio.sleep(LOOK_SECONDS)
            await self.catch_up()

    async def catch_up(self) -> None:
        """Takes over what other processes have written into the file by now. What goes wrong is in the log."""
        if self._state is None:
            return
        try:
            async with self._changing:
                await self._catch_up()
        except Exception as error:
            internal("watching the file of aliases", error)

    async def _change(
        self,
        name: str,
        before: Alias | None,
        targets: tuple[AliasTarget, ...],
        shadow: AliasTarget | None,
        history: tuple[AliasRoute, ...] | None = None,
    ) -> Alias:
        """Loads, checks, writes, and then switches. ``history``: default: what it was, and the route until now."""
        route = AliasRoute(targets, time.time(), caller.get() or "")
        if history is None:
            history = before.history if before is not None else ()
            if before is not None and _versions(before.route) != _versions(route):
                history = (before.route, *history)[:KEPT]
        alias = Alias(name, route, shadow, history)
        self._check(alias)
        await self._load(alias)
        await self._keep(name, alias)
        await self._load(alias)  # somebody may have unloaded a target while it was written
        self._put(name, alias)
        return alias

    def _check_default_model(self) -> None:
        """Raises ``FailedPrecondition`` if requests that name no model could not do without the alias."""
        name = self._registry.default
        problem = "it is not loaded; load it first"
        if self._registry.serves(name):
            problem = unfit(self._policies, self._registry.manifest(name), {""})
        if problem:
            raise FailedPrecondition(
                f"without the alias {DEFAULT!r} requests that name no model would go to the model {name!r}: {problem}",
                field="name",
            )

    def _check(self, alias: Alias) -> None:
        """Raises what can be said against an alias before anything is loaded for it."""
        name = alias.name
        if self._registry.has_model(name):
            raise InvalidArgument(f"{name!r} is the name of a model; an alias needs another one", field="name")
        if self._aliases.get(name) is None and len(self._aliases) >= MOST:
            raise FailedPrecondition(f"there are {MOST} aliases, which is the limit; remove one", field="name")
        versions = [(target.model, target.version) for target in alias.targets]
        if len(set(versions)) < len(versions):
            raise InvalidArgument("the same version is named twice", field="targets")
        if alias.shadow is not None and (alias.shadow.model, alias.shadow.version) in versions:
            raise InvalidArgument(f"the shadow {alias.shadow} is a target itself", field="shadow")
        called = {name, ""} if name == DEFAULT else {name}
        for position, (model, version) in enumerate(versions):
            if problem := unfit(self._policies, self._registry.manifest(model, version), called):
                raise FailedPrecondition(
                    f"the alias {name!r} cannot point at {model}:{version}: {problem}", field=f"targets[{position}]"
                )

    async def _load(self, alias: Alias) -> None:
        """Returns in the moment in which everything that the alias needs is served."""
        needed = [target for target in (*alias.targets, alias.shadow) if target is not None]
        while missing := [target for target in needed if not self._registry.serves(target.model, target.version)]:
            await self._registry.load(missing[0].model, missing[0].version)

    async def _keep(self, name: str, alias: Alias | None) -> None:
        if self._state is None:
            return
        try:
            await asyncio.to_thread(self._state.change, name, alias, self._kept)
        except StateError as error:
            raise Unavailable(f"the alias is as it was: {error}") from error
        # The stamp stays: others may have written in between, and looking again costs little.
        self._kept = {**self._kept, name: alias}

    async def _catch_up(self) -> None:
        """Takes over what another process has written. What cannot be used is in the log, and stays as it was here."""
        if self._state is None or self._stamp == (stamp := self._state.stamp()):
            return
        self._stamp = stamp  # what cannot be used is not tried again until the file changes
        try:
            await self._take_over(self._state)
        except asyncio.CancelledError:  # the caller has gone; who comes next takes over the rest
            self._stamp = None
            raise

    async def _take_over(self, state: StateFile) -> None:
        if self._stamp is None:  # it was deleted: the next change writes all anew
            return
        try:
            self._kept = await asyncio.to_thread(state.read)
        except StateError as error:
            logger.error("the changed file of aliases is not used; those from before stay", why=str(error))
            return
        for name, alias in self._kept.items():
            if alias == self._aliases.get(name):
                continue
            try:
                if alias is not None:
                    self._registry.rescan()
                    await self._load(alias)
                self._put(name, alias)
            except CritiqError as error:
                logger.error("an alias stays as it was in this process", alias=name, why=error.message)

    def _put(self, name: str, alias: Alias | None) -> None:
        """The switch: one step, between two requests."""
        if alias is None:
            self._aliases.drop(name)
        else:
            self._aliases.put(alias)
        if self._shadows is not None:
            self._shadows.changed(name, alias)
        shown = " ".join(f"{target}={target.percent:g}" for target in alias.targets) if alias is not None else "removed"
        logger.info("alias", alias=name, targets=shown, shadow=str(alias.shadow or "") if alias is not None else "")

    def _exact_all(self, targets: Sequence[AliasTarget]) -> tuple[AliasTarget, ...]:
        return tuple(self._exact(target, f"targets[{position}]") for position, target in enumerate(targets))

    def _exact(self, target: AliasTarget, field: str) -> AliasTarget:
        """With its version, where it has none: the newest loaded, or the newest. Raises ``NotFound``."""
        try:
            return replace(target, version=self._registry.manifest(target.model, target.version).version)
        except NotFound as error:
            raise NotFound(error.message, field=field) from error

    def _check_allowed(self) -> None:
        if not self._allowed:
            raise PermissionDenied(
                "this server does not let callers change aliases; its setting models.allow_changes is false"
            )


def _versions(route: AliasRoute) -> frozenset[tuple[str, str]]:
    return frozenset((target.model, target.version) for target in route.targets)


def _same_version(one: AliasTarget, other: AliasTarget) -> bool:
    return (one.model, one.version) == (other.model, other.version)
