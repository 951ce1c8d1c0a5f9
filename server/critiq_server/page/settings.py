"""Whether the server has a page."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class PageSettings(BaseModel):
    """The page at the root of the REST port (docs/page.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(
        True, description="Whether / shows the page, and /v1/live the counters that its live view reads."
    )
