"""Opens the tiers that the settings name."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog

from critiq_server.features.disk import DiskStore
from critiq_server.features.keys import Key
from critiq_server.features.network import RedisStore
from critiq_server.features.settings import DiskSettings, FeatureSettings, RedisSettings
from critiq_server.features.threaded import ThreadedDiskStore
from critiq_server.features.tiers import LowerTiers, Report, Tier

logger = structlog.get_logger("critiq")


def open_tiers(
    settings: FeatureSettings,
    on_report: Callable[[Report], None] = lambda report: None,
    on_damaged: Callable[[str], None] = lambda tier: None,
) -> LowerTiers | None:
    """The tiers below memory; ``None`` where the settings name none. Needs a running event loop.

    Args:
        settings: which there are.
        on_report: told of every operation.
        on_damaged: told the tier's name for every damaged entry.

    Raises:
        StoreError: the store on disk cannot be opened, or Redis's address makes no sense. A Redis that does not answer
            is no error: its features are computed until it does.
    """
    tiers = [*_disk_tier(settings.disk, on_damaged), *_redis_tier(settings.redis, on_damaged)]
    return LowerTiers(tiers, on_report) if tiers else None


def _disk_tier(settings: DiskSettings, on_damaged: Callable[[str], None]) -> Iterable[Tier]:
    if settings.path is None:
        return
    limit = settings.limit_mb * 2**20 if settings.limit_mb is not None else None
    store = DiskStore(settings.path, limit, read_only=settings.read_only, on_damaged=_reporter("disk", on_damaged))
    logger.info("feature store on disk", path=str(settings.path), entries=store.status().entries)
    yield Tier("disk", ThreadedDiskStore(store), writable=not settings.read_only)


def _redis_tier(settings: RedisSettings, on_damaged: Callable[[str], None]) -> Iterable[Tier]:
    if settings.url is None:
        return
    yield Tier(
        "network",
        RedisStore(
            settings.url.get_secret_value(),
            settings.ttl_seconds,
            settings.timeout_ms / 1000,
            _reporter("network", on_damaged),
        ),
    )


def _reporter(tier: str, on_damaged: Callable[[str], None]) -> Callable[[Key, str], None]:
    def report(key: Key, reason: str) -> None:
        logger.warning("a stored feature is damaged", tier=tier, key=key.hex(), reason=reason)
        on_damaged(tier)

    return report
