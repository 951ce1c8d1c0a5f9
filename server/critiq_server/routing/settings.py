"""Aliases that the settings give, and how much work shadows may make."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from critiq.aliases import AliasTarget, parse_target, parse_targets
from critiq.errors import InvalidArgument

NAME = r"[a-z0-9][a-z0-9_.-]{0,63}"
"""What an alias may be called, as a model."""
MOST = 64
"""Aliases at once: their names are labels of metrics."""
MOST_TARGETS = 8


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class AliasSettings(_Section):
    """Where an alias points: MODEL:VERSION, or several with shares, MODEL:VERSION=PERCENT."""

    targets: tuple[str, ...] = Field(
        description="MODEL:VERSION, or several MODEL:VERSION=PERCENT; one may leave out its share."
    )
    shadow: str = Field(
        "", description="MODEL:VERSION=PERCENT that scores so much of what was answered once more. Empty: none."
    )

    @model_validator(mode="before")
    @classmethod
    def _targets_alone_will_do(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"targets": (value,)}
        return {"targets": value} if isinstance(value, (list, tuple)) else value

    @field_validator("targets", mode="before")
    @classmethod
    def _one_target_is_a_list_of_one(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _they_can_be_read(self) -> AliasSettings:
        try:
            if len(self.parsed()) > MOST_TARGETS:
                raise InvalidArgument(f"{len(self.targets)} targets; at most {MOST_TARGETS} are possible")
            self.parsed_shadow()
        except InvalidArgument as error:
            raise ValueError(str(error)) from error
        return self

    def parsed(self) -> tuple[AliasTarget, ...]:
        return parse_targets(self.targets)

    def parsed_shadow(self) -> AliasTarget | None:
        return checked_shadow(parse_target(self.shadow, "shadow")[0]) if self.shadow else None


class ShadowSettings(_Section):
    """How much of a shadow's work may wait and run. Beyond it pictures are left out, never delayed."""

    queue: int = Field(64, gt=0, description="Pictures that may wait to be scored by shadows; beyond it they are left.")
    queue_mb: int = Field(64, gt=0, description="MiB of their data.")
    at_once: int = Field(1, gt=0, description="Pictures that shadows score at once.")
    busy_share: float = Field(
        0.25,
        gt=0,
        le=1,
        description="Shadows wait while more than this share of limits.in_flight is under way for callers.",
    )
    wait_seconds: float = Field(30.0, gt=0, description="How long a picture may wait before it is left out.")
    window: int = Field(2048, ge=16, le=65536, description="Pictures over which rank correlation is taken.")
    thresholds: dict[str, float] = Field(
        {},
        description="Calibrated thresholds by dimension; counted is how often served and candidate fall on different "
        "sides, as for moderation policies.",
    )


def checked_name(name: str) -> str:
    """Raises ``InvalidArgument`` if an alias cannot be called so."""
    if not re.fullmatch(NAME, name):
        raise InvalidArgument(
            f"{name[:80]!r} is no name for an alias: small letters, digits, '_', '.', '-', at most 64", field="name"
        )
    return name


def checked_shadow(shadow: AliasTarget) -> AliasTarget:
    """Raises ``InvalidArgument`` if its percentage is none."""
    if not 0 < shadow.percent <= 100:
        raise InvalidArgument(
            f"the shadow {shadow} takes {shadow.percent:g} %; more than 0 and at most 100 is due",
            field="shadow.percent",
        )
    return shadow
