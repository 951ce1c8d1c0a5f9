"""What is served: loading, unloading, versions, and leases that keep a model alive while a request uses it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

import structlog

from critiq import types
from critiq.errors import FailedPrecondition, InvalidArgument, ModelNotLoaded, NotFound
from critiq_server.bundles.manifest import Manifest
from critiq_server.bundles.model import BrokenBundle, LoadedModel, load_model
from critiq_server.bundles.repository import Bundle, find_bundles, version_order
from critiq_server.descriptions import described
from critiq_server.engine.engine import ServedModel
from critiq_server.routing.keys import key_of
from critiq_server.routing.table import DEFAULT, Aliases, Route
from critiq_server.runtime.lmm.pool import Lmms
from critiq_server.runtime.lmm.settings import LmmSettings
from critiq_server.runtime.onnx import ProviderUnavailable, RuntimeSettings
from critiq_server.wording import quoted

logger = structlog.get_logger("critiq")


@dataclass(eq=False)
class _Tenure:
    """One loading of one version, from activation until the last lease ends."""

    served: ServedModel
    leases: int = 0
    vacated: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Entry:
    bundle: Bundle
    state: types.State = "available"
    reason: str = ""
    tenure: _Tenure | None = None
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Registry:
    """All known model versions. Used from the event loop only.

    Args:
        roots: directories that hold bundles.
        default: name of the model that requests without a model get; the first loaded one if empty.
        runtime: how graphs are run.
        serve: puts batchers in front of a loaded model.
        on_change: told (name, version, serving?) when a version starts or stops serving.
        lmms: opens the LMMs that models ask; ``None``: only stored features are served.
        unfit: why a bundle may not be served here although it is sound; empty: it may.
        on_load: told (name, ``loaded``, ``refused`` or ``failed``, seconds taken) of every try to load.

    ``aliases`` are names that stand for versions; where one is called ``default``, it takes the place of ``default``.
    """

    def __init__(
        self,
        roots: Sequence[Path],
        default: str,
        runtime: RuntimeSettings,
        serve: Callable[[LoadedModel], ServedModel],
        on_change: Callable[[str, str, bool], None] = lambda name, version, serving: None,
        lmms: Lmms | None = None,
        unfit: Callable[[Manifest], str] = lambda manifest: "",
        on_load: Callable[[str, str, float], None] = lambda name, outcome, seconds: None,
    ) -> None:
        self._roots = roots
        self.default = default
        self._runtime = runtime
        self._serve = serve
        self.on_change = on_change
        self._unfit = unfit
        self._on_load = on_load
        self.aliases = Aliases()
        self._lmms = lmms or Lmms(LmmSettings(on_miss="stored"))
        self._entries: dict[str, dict[str, _Entry]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self.rescan()

    def rescan(self) -> None:
        """Looks for bundles that came since."""
        for name, versions in find_bundles(self._roots).items():
            entries = self._entries.setdefault(name, {})
            for version, bundle in versions.items():
                entry = entries.setdefault(version, _Entry(bundle))
                if entry.tenure is None:
                    entry.bundle = bundle
            self._entries[name] = dict(sorted(entries.items(), key=lambda item: version_order(item[0])))

    async def load(self, name: str, version: str = "") -> types.Model:
        """Loads a version, newest if none is named. The version serving so far serves until then, and after a failure.

        Raises:
            NotFound: no such bundle.
            FailedPrecondition: the bundle is broken or its provider does not work here.
        """
        self.rescan()
        entry = self._entry(name, version or next(reversed(self._versions(name))))
        async with entry.lock:
            old = entry.tenure
            entry.state = "loading" if old is None else "ready"
            manifest = entry.bundle.manifest
            started = perf_counter()
            try:
                loaded = await asyncio.to_thread(load_model, entry.bundle.directory, self._runtime, self._lmms)
                if (loaded.manifest.name, loaded.manifest.version) != (manifest.name, manifest.version):
                    raise BrokenBundle(
                        f"its directory now holds {loaded.manifest.name!r} version {loaded.manifest.version!r}"
                    )
                if problem := self._unfit(loaded.manifest):
                    loaded.close()
                    raise BrokenBundle(problem)
            except (BrokenBundle, ProviderUnavailable) as error:
                entry.state = "failed" if old is None else "ready"
                entry.reason = str(error)
                self._on_load(manifest.name, "refused", perf_counter() - started)
                logger.error("model refused", model=manifest.name, version=manifest.version, reason=str(error))
                raise FailedPrecondition(
                    f"model {manifest.name!r} version {manifest.version!r} was refused: {error}", field="name"
                ) from error
            except BaseException:  # the caller has gone, or a fault: it is not being loaded any more
                entry.state = "available" if old is None else "ready"
                self._on_load(manifest.name, "failed", perf_counter() - started)
                raise
            entry.bundle = Bundle(entry.bundle.directory, loaded.manifest)
            entry.tenure, entry.state, entry.reason = _Tenure(self._serve(loaded)), "ready", ""
            self.default = self.default or manifest.name
            if old is not None:
                self._retire(old)
        self._on_load(manifest.name, "loaded", perf_counter() - started)
        logger.info("model ready", model=manifest.name, version=manifest.version)
        self.on_change(manifest.name, manifest.version, True)
        return self._described(name, manifest.version)

    async def unload(self, name: str, version: str = "") -> None:
        """Stops serving a version, or all of a model's; returns once the requests that use it are answered.

        Raises:
            NotFound: no such version.
            InvalidArgument: it is the default model's last one.
            FailedPrecondition: an alias needs it.
        """
        entries = [self._entry(name, version)] if version else list(self._versions(name).values())
        serving = [entry for entry in entries if entry.tenure is not None]
        for entry in serving:
            known = entry.bundle.manifest.version
            if why := self.aliases.holding(name, known):
                raise FailedPrecondition(
                    f"model {name!r} version {known!r} stays loaded: {why}; point the alias elsewhere first",
                    field="version",
                )
        no_alias = self.aliases.get(DEFAULT) is None
        if no_alias and name == self.default and len(serving) == len(self._serving(name)):
            raise InvalidArgument(
                f"{name!r} is the default model; set another default before unloading its last version", field="name"
            )
        closing = []
        for entry in serving:  # in one step: what was checked above holds for each of them
            tenure, entry.tenure, entry.state = entry.tenure, None, "available"
            if tenure is not None:
                self.on_change(name, entry.bundle.manifest.version, False)
                closing.append(self._retire(tenure))
        # Tasks of their own: they end although the caller may leave.
        await asyncio.shield(asyncio.gather(*closing))

    def route(self, name: str = "", version: str = "", key: Callable[[], bytes] = lambda: key_of(())) -> Route:
        """What a request gets that calls its model ``name``: what an alias says, else that model.

        Args:
            key: gives the request's key, where an alias has several targets.

        Raises:
            InvalidArgument: an alias is named together with a version.
        """
        return self.aliases.route(name, version, key) or Route(name or self.default, version)

    @contextmanager
    def lease(self, name: str = "", version: str = "") -> Iterator[ServedModel]:
        """The model that a request names, kept alive inside the ``with`` block.

        Raises:
            NotFound: no such model or version.
            ModelNotLoaded: known, but not loaded.
            InvalidArgument: an alias is named together with a version.
        """
        with self.lease_of(self.route(name, version)) as served:
            yield served

    @contextmanager
    def lease_of(self, route: Route) -> Iterator[ServedModel]:
        """The same for a route that was chosen in this moment. Raises ``NotFound`` or ``ModelNotLoaded``."""
        tenure = self._tenure(route.model, route.version)
        tenure.leases += 1
        try:
            yield tenure.served
        finally:
            tenure.leases -= 1
            if tenure.leases == 0:
                tenure.vacated.set()

    def list(self) -> list[types.Model]:
        """Every known version."""
        return [self._described(name, version) for name, versions in self._entries.items() for version in versions]

    def describe(self, name: str = "", version: str = "") -> types.Model:
        """One version; by default what requests get, or the newest if none is loaded.

        Of an alias with several targets, the one with the largest share. Raises ``NotFound``.
        """
        name, version = self._meant(name, version)
        return self._described(name, version or self._newest(name))

    def meant(self, name: str = "", version: str = "") -> Sequence[types.Model]:
        """Every version that requests of these may get: several where an alias has several targets.

        Raises ``NotFound``, or ``InvalidArgument`` if an alias is named together with a version.
        """
        alias = self.aliases.meant(name)
        if alias is None or version:
            return [self.describe(name, version)]
        return [self._described(target.model, target.version) for target in alias.targets]

    def manifest(self, name: str, version: str = "") -> Manifest:
        """Of a version that need not be loaded; default: the newest loaded, or the newest. Raises ``NotFound``."""
        return self._entry(name, version or self._newest(name)).bundle.manifest

    def has_model(self, name: str) -> bool:
        return name in self._entries

    def served(self) -> Sequence[ServedModel]:
        """What is loaded, in no particular order. May be called from any thread."""
        entries = [entry for versions in tuple(self._entries.values()) for entry in tuple(versions.values())]
        return [tenure.served for entry in entries if (tenure := entry.tenure) is not None]

    @property
    def default_name(self) -> str:
        """What answers requests that name no model: the alias ``default``, or a model."""
        return DEFAULT if self.aliases.get(DEFAULT) is not None else self.default

    def knows(self, name: str) -> bool:
        """Whether there is a model of that name, loaded or not, or an alias."""
        return name in self._entries or self.aliases.get(name) is not None

    def called(self, name: str, version: str) -> frozenset[str]:
        """What requests may call this version: its name, aliases, and the empty string if it is the default model's."""
        called = {name, *self.aliases.pointing_at(name, version)}
        if DEFAULT in called or (self.aliases.get(DEFAULT) is None and name == self.default):
            called.add("")
        return frozenset(called)

    @property
    def ready(self) -> bool:
        """Whether requests that name no model are answered.

        A version that is suspended counts where the settings say so.
        """
        alias = self.aliases.get(DEFAULT)
        if alias is not None:
            return all(self._healthy(target.model, target.version) for target in alias.targets)
        return bool(self.default) and self._healthy(self.default, "")

    def _healthy(self, name: str, version: str) -> bool:
        serving = self._serving(name) if name in self._entries else {}
        entry = serving.get(version) if version else next(reversed(serving.values()), None)
        return entry is not None and (self._runtime.faults.action == "recover" or _suspended(entry) == "")

    def check_health(self, name: str, version: str) -> None:
        """Tells of a version that was suspended because it fails, or is back."""
        entry = self._entries.get(name, {}).get(version)
        if entry is not None and entry.tenure is not None:
            self.on_change(name, version, _suspended(entry) == "")

    def serves(self, name: str, version: str = "") -> bool:
        """Whether this version is loaded; without one, any."""
        return any(
            entry.tenure is not None and version in ("", known) for known, entry in self._entries.get(name, {}).items()
        )

    async def close(self) -> None:
        """Stops serving everything, once the requests under way are answered."""
        tenures = [entry.tenure for versions in self._entries.values() for entry in versions.values() if entry.tenure]
        await asyncio.gather(*(self._vacate(tenure) for tenure in tenures), *self._closing)

    def _retire(self, tenure: _Tenure) -> asyncio.Task[None]:
        task = asyncio.create_task(self._vacate(tenure))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
        return task

    async def _vacate(self, tenure: _Tenure) -> None:
        while tenure.leases:
            tenure.vacated.clear()
            await tenure.vacated.wait()
        await tenure.served.close()

    def _tenure(self, name: str, version: str) -> _Tenure:
        if not version:
            serving = self._serving(name)
            if serving:
                version = next(reversed(serving))
        entry = self._entry(name, version or next(reversed(self._versions(name))))
        if entry.tenure is None:
            manifest = entry.bundle.manifest
            which = f"model {name!r} version {manifest.version!r}"
            if entry.state == "loading":
                message = f"{which} is being loaded; try again in a moment"
                raise ModelNotLoaded(message, field="target.model", retry_after=1.0)
            hint = f" ({entry.reason})" if entry.reason else ""
            raise ModelNotLoaded(f"{which} is {entry.state}, not loaded{hint}; load it first", field="target.model")
        return entry.tenure

    def _meant(self, name: str, version: str) -> tuple[str, str]:
        """Model and version (empty: the newest) that ``name`` stands for, of several targets the largest."""
        alias = self.aliases.meant(name)
        if alias is None:
            return name or self.default, version
        if version:
            route = self.route(name, version)  # raises for a name
            return route.model, route.version
        return alias.main.model, alias.main.version

    def _described(self, name: str, version: str) -> types.Model:
        entry = self._entry(name, version)
        default, chosen = self._meant("", "")
        suspended = _suspended(entry)
        return described(
            entry.bundle.manifest,
            entry.tenure.served.model if entry.tenure is not None else None,
            "failed" if suspended else entry.state,
            suspended or entry.reason,
            is_default=name == default and version == (chosen or self._newest(name)),
            aliases=tuple(self.aliases.pointing_at(name, version)),
        )

    def _newest(self, name: str) -> str:
        return next(reversed(self._serving(name) or self._versions(name)))

    def _serving(self, name: str) -> dict[str, _Entry]:
        return {version: entry for version, entry in self._versions(name).items() if entry.tenure is not None}

    def _versions(self, name: str) -> dict[str, _Entry]:
        versions = self._entries.get(name)
        if versions is None:
            known = ", ".join(self._entries) or "none"
            aliases = f"; aliases: {', '.join(alias.name for alias in self.aliases)}" if self.aliases else ""
            raise NotFound(f"there is no model {quoted(name)}; known models: {known}{aliases}", field="target.model")
        return versions

    def _entry(self, name: str, version: str) -> _Entry:
        versions = self._versions(name)
        if version not in versions:
            known = ", ".join(versions)
            raise NotFound(
                f"model {name!r} has no version {quoted(version)}; known versions: {known}", field="target.version"
            )
        return versions[version]


def _suspended(entry: _Entry) -> str:
    return entry.tenure.served.suspended if entry.tenure is not None else ""
