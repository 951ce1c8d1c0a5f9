"""Where LMMs run and how they are reached."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr


class RemoteSettings(BaseModel):
    """An LMM served elsewhere, over vLLM's pooling endpoint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field("", description="Base address, for instance http://gpu-host:8000. Empty: there is none.")
    model: str = Field("", description="What the model is called there. Empty: as in the bundle.")
    api_key: SecretStr | None = Field(None, description="Sent as a bearer token.")
    timeout_seconds: float = Field(20.0, gt=0, description="For one question about one picture, each attempt.")
    attempts: int = Field(3, ge=1, le=10, description="Tries of one question, with growing pauses between them.")
    concurrency: int = Field(8, ge=1, le=256, description="Questions under way at once.")
    breaker_failures: int = Field(
        5, ge=1, description="Failed questions in a row after which none is asked for a while."
    )
    breaker_seconds: float = Field(10.0, gt=0, description="How long that while is; then one is tried.")


class LmmSettings(BaseModel):
    """Large multimodal models (LMMs) whose features bundles use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    on_miss: Literal["as-bundle", "compute", "remote", "stored"] = Field(
        "as-bundle",
        description="When a feature is not in the store: compute it here, ask the remote LMM, or refuse (stored). "
        "as-bundle: what the bundle says.",
    )
    folders: dict[str, Path] = Field(
        default_factory=dict,
        description="Folder of each LMM that is computed here, by the name that bundles call it.",
    )
    device: str = Field("auto", description="Of torch, for instance cuda:1. auto: the first GPU, else the CPU.")
    batch_tokens: int = Field(16_384, gt=0, description="Picture and text tokens computed at once; bounds memory.")
    max_delay_ms: float = Field(
        3.0,
        ge=0,
        le=1000,
        description="How long a question waits for others about the same picture, with which it shares most work.",
    )
    remote: RemoteSettings = Field(default_factory=RemoteSettings, description="An LMM served elsewhere.")
