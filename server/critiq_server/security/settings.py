"""Who may call the server."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class SecuritySettings(BaseModel):
    """Keys of callers (docs/security.md). Without a file of keys everybody who reaches the server may call it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    keys_file: Path | None = Field(
        None, description="YAML file of the keys' hashes, written by `critiq keys new`. Empty: no keys are asked for."
    )
    reload_seconds: float = Field(
        2.0, gt=0, description="How often it is looked whether that file has changed; a change takes effect at once."
    )
    open_documents: bool = Field(
        True, description="Whether the page's files and the API's description are there for callers without a key."
    )
