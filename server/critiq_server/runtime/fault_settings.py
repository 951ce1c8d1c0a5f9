"""When a stage is taken to have failed, and what becomes of its model then."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class FaultSettings(BaseModel):
    """Stages that raise, stall, or give what are no numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_compute_seconds: float = Field(
        60.0,
        ge=0,
        description="How long a batch may compute; after that its requests are refused and its thread is written off. "
        "0: for ever.",
    )
    suspend_after: int = Field(
        3,
        ge=1,
        description="Batches in a row of which nothing came, after which the golden record decides whether the model "
        "is suspended. One that stalls suspends it at once.",
    )
    action: Literal["unready", "recover"] = Field(
        "unready",
        description="What happens while the default model is suspended. unready: the server says that it is not "
        "ready, so that others get its requests; recover: it stays ready. Either way the model's requests are refused "
        "with a hint, and it serves again once it computes its golden record.",
    )
    probe_seconds: float = Field(5.0, gt=0, description="Pause between two tries of a suspended model.")
