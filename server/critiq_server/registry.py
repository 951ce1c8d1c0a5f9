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
from critiq_server.bundles.manifest import Manifest, Stage
from critiq_server.bundles.model import BrokenBundle, LoadedModel, LoadedStage, load_model
from critiq_server.bundles.repository import Bundle, find_bundles, version_order
from critiq_server.engine.engine import ServedModel
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
        return self.describe(name, manifest.version)

    async def unload(self, name: str, version: str = "") -> None:
        """Stops serving a version, or all of a model's; returns once the requests that use it are answered.

        Raises:
            NotFound: no such version.
            InvalidArgument: it is the default model's last one.
        """
        entries = [self._entry(name, version)] if version else list(self._versions(name).values())
        serving = [entry for entry in entries if entry.tenure is not None]
        if name == self.default and len(serving) == len(self._serving(name)):
            raise InvalidArgument(
                f"{name!r} is the default model; set another default before unloading its last version", field="name"
            )
        for entry in serving:
            tenure, entry.tenure, entry.state = entry.tenure, None, "available"
            if tenure is not None:
                self.on_change(name, entry.bundle.manifest.version, False)
                # A task of its own: it ends although the caller may leave.
                await asyncio.shield(self._retire(tenure))

    @contextmanager
    def lease(self, name: str = "", version: str = "") -> Iterator[ServedModel]:
        """The model that a request names, kept alive inside the ``with`` block.

        Raises:
            NotFound: no such model or version.
            ModelNotLoaded: known, but not loaded.
        """
        tenure = self._tenure(name or self.default, version)
        tenure.leases += 1
        try:
            yield tenure.served
        finally:
            tenure.leases -= 1
            if tenure.leases == 0:
                tenure.vacated.set()

    def list(self) -> list[types.Model]:
        """Every known version."""
        return [self.describe(name, version) for name, versions in self._entries.items() for version in versions]

    def describe(self, name: str = "", version: str = "") -> types.Model:
        """One version; by default what requests get, or the newest if none is loaded. Raises ``NotFound``."""
        name = name or self.default
        newest = next(reversed(self._serving(name) or self._versions(name)))
        entry = self._entry(name, version or newest)
        return _describe(entry, is_default=name == self.default and entry.bundle.manifest.version == newest)

    def knows(self, name: str) -> bool:
        """Whether there is a model of that name, loaded or not."""
        return name in self._entries

    def served(self) -> Sequence[ServedModel]:
        """What is loaded, in no particular order. May be called from any thread."""
        entries = [entry for versions in tuple(self._entries.values()) for entry in tuple(versions.values())]
        return [tenure.served for entry in entries if (tenure := entry.tenure) is not None]

    @property
    def ready(self) -> bool:
        """Whether the default model is served, and not suspended where the settings make that count."""
        serving = self._serving(self.default) if self.default in self._entries else None
        if not self.default or not serving:
            return False
        newest = next(reversed(serving.values()))
        return self._runtime.faults.action == "recover" or _suspended(newest) == ""

    def check_health(self, name: str, version: str) -> None:
        """Tells of a version that was suspended because it fails, or is back."""
        entry = self._entries.get(name, {}).get(version)
        if entry is not None and entry.tenure is not None:
            self.on_change(name, version, _suspended(entry) == "")

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
            hint = f" ({entry.reason})" if entry.reason else ""
            raise ModelNotLoaded(
                f"model {name!r} version {manifest.version!r} is {entry.state}, not loaded{hint}; load it first",
                field="target.model",
                retry_after=1.0 if entry.state == "loading" else None,
            )
        return entry.tenure

    def _serving(self, name: str) -> dict[str, _Entry]:
        return {version: entry for version, entry in self._versions(name).items() if entry.tenure is not None}

    def _versions(self, name: str) -> dict[str, _Entry]:
        versions = self._entries.get(name)
        if versions is None:
            known = ", ".join(self._entries) or "none"
            raise NotFound(f"there is no model {quoted(name)}; known models: {known}", field="target.model")
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


def _on_miss(stage: Stage, running: LoadedStage | None) -> str:
    if stage.lmm is None:
        return ""
    return running.lmm.on_miss if running is not None and running.lmm is not None else stage.on_miss


def _describe(entry: _Entry, *, is_default: bool) -> types.Model:
    manifest: Manifest = entry.bundle.manifest
    loaded = entry.tenure.served.model if entry.tenure is not None else None
    stages = []
    for stage in manifest.stages:
        running = loaded.stages[stage.name] if loaded is not None else None
        stages.append(
            types.StageInfo(
                name=stage.name,
                runtime=stage.runtime,
                provider=running.runtime.provider if running is not None else "",
                max_batch=stage.max_batch,
                digest=running.digest.hex() if running is not None else "",
                cached=stage.cache,
                lmm=stage.lmm.model if stage.lmm is not None else "",
                instruction=stage.lmm.instruction if stage.lmm is not None else "",
                on_miss=_on_miss(stage, running),
            )
        )
    return types.Model(
        name=manifest.name,
        version=manifest.version,
        family=manifest.family,
        title=manifest.title,
        description=manifest.description,
        state="failed" if _suspended(entry) else entry.state,
        state_reason=_suspended(entry) or entry.reason,
        is_default=is_default,
        dimensions=tuple(
            types.Dimension(
                name=dimension.name,
                title=dimension.title,
                description=dimension.description,
                minimum=dimension.minimum,
                maximum=dimension.maximum,
                direction=dimension.direction,
                scope=dimension.scope,
                needs_prompt=dimension.needs_prompt,
                tolerance=dimension.tolerance,
                reference_population=dimension.reference.population if dimension.reference else "",
                reference_count=dimension.reference.count if dimension.reference else 0,
                reference_quantiles=tuple(dimension.reference.quantiles) if dimension.reference else (),
                has_fallback=dimension.fallback is not None,
            )
            for dimension in manifest.dimensions
        ),
        stages=tuple(stages),
        licence=types.Licence(manifest.licence.code, manifest.licence.weights, manifest.licence.data),
    )
