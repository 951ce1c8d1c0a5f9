"""What callers are told of a model version."""

from __future__ import annotations

from critiq import types
from critiq_server.bundles.manifest import Manifest, Stage
from critiq_server.bundles.model import LoadedModel, LoadedStage


def _on_miss(stage: Stage, running: LoadedStage | None) -> str:
    if stage.lmm is None:
        return ""
    return running.lmm.on_miss if running is not None and running.lmm is not None else stage.on_miss


def described(
    manifest: Manifest,
    loaded: LoadedModel | None,
    state: types.State,
    reason: str,
    *,
    is_default: bool,
    aliases: tuple[str, ...],
) -> types.Model:
    """One version; ``loaded``: as it is served, if it is."""
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
        state=state,
        state_reason=reason,
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
        aliases=aliases,
    )
