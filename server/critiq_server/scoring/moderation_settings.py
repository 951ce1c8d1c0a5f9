"""Which moderation policies a server has, and its face in OpenAI's form."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

SAFETY_CATEGORIES = ("harassment", "hate", "illicit", "self-harm", "sexual", "violence")
"""Of OpenAI's moderation; each may be followed by a slash and a part of it."""


class OpenAiSettings(BaseModel):
    """POST /v1/moderations, as OpenAI's clients call it. Off by default."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(False, description="Whether the REST port answers it.")
    flagged_from: Literal["review", "reject"] = Field("reject", description="Mildest decision that is told as flagged.")
    categories: dict[str, str] = Field(
        {},
        description="Dimension by category's name. Empty: low_DIMENSION for each dimension that the policy looks at.",
    )

    @field_validator("categories")
    @classmethod
    def _quality_is_not_safety(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if name.partition("/")[0].replace("_", "-") in SAFETY_CATEGORIES:
                raise ValueError(
                    f"the category {name!r} would be read as a judgement of safety, and no score here is one; choose a "
                    "name that says what the dimension judges, such as low_visual_quality"
                )
        return value


class ModerationSettings(BaseModel):
    """Policies that decide on pictures by their scores (docs/moderation.md)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policies: tuple[Path, ...] = Field((), description="Policy files, and directories of them (*.yaml, *.yml).")
    default: str = Field("", description="Policy of calls that name none. Empty: the only one, if there is one name.")
    openai: OpenAiSettings = Field(
        default_factory=OpenAiSettings, description="POST /v1/moderations, as OpenAI's clients call it."
    )

    @field_validator("policies", mode="before")
    @classmethod
    def _one_path_will_do(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str | Path) else value
