"""Where features are kept beyond memory."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DiskSettings(_Section):
    """A store on disk."""

    path: Path | None = Field(None, description="Directory of the store. Empty: none.")
    limit_mb: int | None = Field(
        None, gt=0, description="MiB that it may take; what was used longest ago goes first. Empty: no limit."
    )
    read_only: bool = Field(
        False, description="For a store that was built elsewhere and is mounted: it is neither written nor trimmed."
    )


class RedisSettings(_Section):
    """A Redis or Valkey server that several servers share."""

    url: SecretStr | None = Field(
        None, description="redis://[user:password@]host:port/database, rediss:// for TLS, unix://. Empty: none."
    )
    ttl_seconds: float = Field(30.0 * 86_400, gt=0, description="How long an entry lives after it was written.")
    timeout_ms: float = Field(
        100.0, gt=0, description="For connecting and for each answer; beyond it a feature is computed."
    )


class FeatureSettings(_Section):
    """Where stage outputs are kept beyond memory (engine.store_mb)."""

    disk: DiskSettings = Field(default_factory=DiskSettings, description="A store on disk.")
    redis: RedisSettings = Field(default_factory=RedisSettings, description="A store for a fleet.")
    also: tuple[str, ...] = Field(
        (),
        description="MODEL/STAGE patterns (* for any) of stages whose outputs go there too, beside those of LMMs "
        "and what bundles ask for.",
    )

    def includes(self, model: str, stage: str) -> bool:
        """Whether ``also`` names this stage."""
        return any(fnmatchcase(f"{model}/{stage}", pattern) for pattern in self.also)
